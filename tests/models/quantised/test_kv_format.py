"""How keys and values are kept: what ``--kv-dtype fp8`` finds in a checkpoint, counts and
refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cgbench.engine.memory import check_memory
from cgbench.engine.runner import EagerRunner
from cgbench.errors import BadInputError, ModelError
from cgbench.floor.work import rank_work
from cgbench.models.heads.families import DEEPSEEK, MIMO, QWEN
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.quantised.kv_format import is_kv_scale
from cgbench.request.choices import KvDtype
from cgbench.request.parts import CaptureRequest, ModelRequest
from cgbench.request.peers_request import PeersRequest
from tests.support.command import FAST, cgbench
from tests.support.fp8 import make_fp8_checkpoint
from tests.support.fp8_kv import decoded_by_hand
from tests.support.tiny import (
    decode_prompts,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

# As llm-compressor and vLLM name them, and as older checkpoints do.
NAMES = {
    "attn": "model.layers.{}.self_attn.attn.{}_scale",
    "self_attn": "model.layers.{}.self_attn.{}_scale",
    "proj": "model.layers.{}.self_attn.{}_proj.{}_scale",
}


def add_scales(folder: Path, scales: dict[str, float], name: str = NAMES["self_attn"]) -> Path:
    """``scales`` by layer and k or v, such as 0k."""
    file = folder / "model.safetensors"
    added = {
        name.format(key[0], *key[1] * (name.count("{}") - 1)): torch.tensor(value)
        for key, value in scales.items()
    }
    save_file(load_file(file) | added, file, metadata={"format": "pt"})
    return folder


def plan(folder: Path | str, **how: object) -> object:
    where = torch.device("cpu"), torch.bfloat16
    return plan_loading(Loading(str(folder), None, True, *where, kv_dtype=KvDtype.FP8, **how))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_scales_of_a_checkpoint_are_used_where_it_states_them(tmp_path: Path, name: str) -> None:
    """Layer 1's alone: layer 0 and the head have a scale for each head and token."""
    folder = make_checkpoint(tmp_path, "mimo", seed=3)
    expected = reference_model(folder)
    add_scales(folder, {"1k": 0.01, "1v": 0.004}, name)
    model = load_tiny(folder, kv_dtype=KvDtype.FP8)
    stated = {1: pytest.approx((0.01, 0.004))}
    assert model.kv_format.is_fp8 and model.kv_format.stated == stated
    spec = make_speculator(model, max_batch_size=5, room=64)
    are_by_token = {
        number: kv.scales is not None and kv.scales.are_by_token
        for number, kv in spec.cache.layers.items()
    }
    assert are_by_token == {0: True, 1: False, 2: True}
    runner = EagerRunner(spec, make_state(spec, 3, 5))
    got = decode_prompts(spec, runner, random_prompts(5), 12).token_ids
    assert got == decoded_by_hand(expected, random_prompts(5), 12, dict(model.kv_format.stated))


def test_without_the_flag_they_are_left_alone(tmp_path: Path) -> None:
    folder = add_scales(make_checkpoint(tmp_path, "mimo"), {"1k": 0.0, "1v": 1.0})
    model = load_tiny(folder)
    assert not model.kv_format.is_fp8
    spec = make_speculator(model, max_batch_size=2, room=16)
    assert all(kv.scales is None for kv in spec.cache.layers.values())


def test_an_fp8_checkpoint_has_them_beside_its_weights(tmp_path: Path) -> None:
    folder, _ = make_fp8_checkpoint(tmp_path, "mimo", MIMO)
    add_scales(folder, {"0k": 0.5, "0v": 0.25})
    assert load_tiny(folder, kv_dtype=KvDtype.FP8).kv_format.stated == {0: (0.5, 0.25)}


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ({"0k": 0.1}, "layer 0 has a k_scale alone"),
        ({"0k": 0.1, "0v": 0.0}, "v_scale holds .*above zero"),
        ({"0k": float("nan"), "0v": 0.1}, "k_scale holds .*nan.*above zero"),
        ({"0k": -1.0, "0v": 0.1}, "k_scale holds .*above zero"),
    ],
)
def test_bad_scales_are_refused_by_name(
    tmp_path: Path, scales: dict[str, float], words: str
) -> None:
    folder = add_scales(make_checkpoint(tmp_path, "mimo"), scales)
    with pytest.raises(ModelError, match=words) as error:
        load_tiny(folder, kv_dtype=KvDtype.FP8)
    assert "--kv-dtype auto" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keeps_latents", [True, False])
def test_latents_are_not_kept_in_fp8(tmp_path: Path, keeps_latents: bool) -> None:
    folder = make_checkpoint(tmp_path, "deepseek_v3", family=DEEPSEEK)
    with pytest.raises(BadInputError, match=r"--kv-dtype fp8: .*latent attention.*auto"):
        plan(folder, keeps_latents=keeps_latents)


def test_the_command_refuses_latents(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "glm4_moe_lite", family=DEEPSEEK)
    where = ("--prompts", "random", "--output", tmp_path / "run", "--kv-dtype", "fp8")
    cgbench("run", folder, *FAST, *where).refused(2, "--kv-dtype fp8", "--kv-dtype auto")


def test_a_hybrids_recurrent_state_stays_as_it_is(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3_5", family=QWEN)
    fp8, plain = (load_tiny(folder, kv_dtype=each) for each in (KvDtype.FP8, KvDtype.AUTO))
    states = [make_speculator(each, max_batch_size=2, room=16).cache for each in (fp8, plain)]
    assert all(cache.recurrent is not None for cache in states)
    dtypes = [{t.dtype for t in cache.recurrent.tensors().values()} for cache in states]
    assert dtypes[0] == dtypes[1]
    assert {kv.keys.dtype for kv in states[0].layers.values()} == {torch.float8_e4m3fn}
    assert rank_work(fp8).target.states == rank_work(plain).target.states


def test_bytes_of_a_token_are_those_stored(tmp_path: Path) -> None:
    """Three layers of two heads of 16, or of 8 with mimo's size: values, and two scales a head."""
    folder = make_checkpoint(tmp_path, "glm4_moe", family=DEEPSEEK)
    found = plan(folder)
    skeleton, kept = found.skeleton, found.kv_format
    per_token = 3 * 2 * (2 * 16 + 2 * 4)
    assert skeleton.kv_bytes_per_token(torch.bfloat16, kv_format=kept) == per_token
    assert skeleton.kv_bytes_per_token(torch.bfloat16, 2, kept) == per_token // 2
    told = cgbench("inspect", folder, "--kv-dtype", "fp8", "--device", "cpu", "--json")
    facts = json.loads(told.stdout)
    assert facts["kv_bytes_per_token"] == per_token
    assert facts["kv_format"] == "FP8 (e4m3) with a scale for each head and token"
    lines = cgbench("inspect", folder, "--kv-dtype", "fp8", "--device", "cpu").stdout
    assert f"{per_token} bytes a token, head included, in FP8 (e4m3) with a scale" in lines


def test_memory_is_that_of_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    from cgbench.engine import memory
    from cgbench.errors import OutOfMemoryError
    from tests.support.options import make_options

    found = plan("preset:mimo-7b")
    options = make_options(batch_sizes=(64,), max_batch_size=64, context_len=8192)
    kv = 65 * (8192 + options.to_decode) * 37 * 8 * (2 * 128 + 2 * 4)
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 0)
    with pytest.raises(OutOfMemoryError, match=f"KV of 65 slots {kv:,}"):
        check_memory(found, options)


def test_names_of_scales() -> None:
    assert is_kv_scale("model.language_model.layers.3.self_attn.k_scale")
    assert is_kv_scale("model.layers.3.self_attn.v_proj.v_scale")
    assert not is_kv_scale("model.layers.3.self_attn.k_proj.weight_scale")
    assert not is_kv_scale("model.layers.3.self_attn.q_scale")


def test_peers_keep_none() -> None:
    with pytest.raises(BadInputError, match="--kv-dtype fp8: peers"):
        PeersRequest(ModelRequest(kv_dtype=KvDtype.FP8), CaptureRequest(spec_tokens=(3,)))
