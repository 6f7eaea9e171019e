"""The target: what it refuses, the KV shapes it is probed for, and its fingerprint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoXConfig,
    MambaConfig,
    MiniMaxConfig,
    PretrainedConfig,
)

from cgbench.errors import ExitCode, UnsupportedModelError
from cgbench.models.checkpoint import read_config
from cgbench.models.fingerprint import _config_text, fingerprint
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.models.skeleton import make_skeleton
from cgbench.models.support import check_capturable
from cgbench.models.target import probe_kv_shapes
from tests.support.tiny import (
    CONFIGS,
    MORE_CONFIGS,
    SHAPE,
    edit_config,
    load_tiny,
    make_checkpoint,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}


def refused(config: PretrainedConfig, *words: str) -> Any:
    return pytest.param(config, words, id=config.model_type)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        refused(
            BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=64),
            *("BloomForCausalLM", "'layers'"),
        ),
        refused(
            FalconConfig(**SMALL),
            *("FalconForCausalLM", "AttentionInterface"),
        ),
        refused(
            MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64),
            "MambaForCausalLM",
        ),
        refused(GPTNeoXConfig(**SMALL, intermediate_size=48), "GPTNeoXForCausalLM", "'norm'"),
        refused(Gemma2Config(**SHAPE, head_dim=8), "Gemma2ForCausalLM", "soft-capping"),
    ],
)
def test_a_model_whose_attention_is_not_ours_is_refused_by_name(
    config: PretrainedConfig, words: tuple[str, ...], tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError) as error:
        load_tiny(tmp_path, with_head=False)
    assert [word for word in words if word not in str(error.value)] == []
    assert error.value.exit_code is ExitCode.CANNOT and "\n" not in str(error.value)


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(make_checkpoint(tmp_path_factory.mktemp(request.param), request.param))


def test_kv_shapes_are_probed_for_every_layer_and_the_head(model: LoadedModel) -> None:
    """Qwen3's head size is 16 where hidden_size / heads is 8."""
    config = model.target.model.config
    size = 16 if config.model_type == "qwen3" else 8
    probe = probe_kv_shapes(model.target, model.head)
    assert probe.kv_shapes == dict.fromkeys(range(3), ((2, size), (2, size)))
    assert probe.num_query_heads == dict.fromkeys(range(3), 4)


def test_without_a_head_there_is_no_layer_for_it(model: LoadedModel) -> None:
    assert set(probe_kv_shapes(model.target, None).kv_shapes) == {0, 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), "mimo")


def digest(folder: Path, head: Path | None = None, dtype: torch.dtype = torch.float32) -> str:
    head_ref = None if head is None else str(head)
    model = load_model(Loading(str(folder), head_ref, True, torch.device("cpu"), dtype))
    return fingerprint(model.target, model.head)


def changed(folder: Path, to: Path, name: str, by: Tensor) -> Path:
    """A copy of the checkpoint with ``by`` in place of the tensor ``name``."""
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert tensors[name].shape == by.shape and not torch.equal(tensors[name], by)
    save_file(tensors | {name: by}, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_equal_weights_have_equal_fingerprints(folder: Path, tmp_path: Path) -> None:
    again = make_checkpoint(tmp_path, "mimo")
    assert digest(folder) == digest(folder) == digest(again)


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.mtp_layers.0.input_proj.weight"]
)
def test_one_changed_weight_changes_the_fingerprint(
    folder: Path, tmp_path: Path, name: str
) -> None:
    tensor = load_file(folder / "model.safetensors")[name]
    tensor[3, 5] = torch.nextafter(tensor[3, 5], torch.tensor(9.0))
    assert digest(changed(folder, tmp_path / "changed", name, tensor)) != digest(folder)


def test_weights_in_another_order_change_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = load_file(folder / "model.safetensors")[name].flip(0).contiguous()
    assert digest(changed(folder, tmp_path / "flipped", name, tensor)) != digest(folder)


def test_settings_by_layer_type_count_in_any_order() -> None:
    """transformers makes Step's of a set, in another order in every process."""
    target = make_skeleton(MORE_CONFIGS["step3p5"], None).target
    text = _config_text(target)
    parameters = target.config.rope_parameters
    assert len(parameters) == 2
    target.config.rope_parameters = dict(reversed(parameters.items()))
    assert _config_text(target) == text
    parameters["full_attention"]["rope_theta"] += 1
    assert _config_text(target) != text


def test_another_head_or_another_dtype_has_another_fingerprint(
    folder: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path, "mimo", seed=5)
    prints = {digest(folder), digest(folder, head=other), digest(folder, dtype=torch.bfloat16)}
    assert len(prints) == 3


def test_rotary_types_that_read_the_device_cannot_be_captured(tmp_path: Path) -> None:
    """They run eager; only graphs are refused, by name."""
    folder = make_checkpoint(tmp_path, "llama")
    check_capturable(read_config(str(folder)))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    edit_config(folder, rope_parameters=dynamic)
    with pytest.raises(UnsupportedModelError, match="'dynamic', which cannot be captured"):
        check_capturable(read_config(str(folder)))
    assert load_tiny(folder).target.config.rope_parameters["rope_type"] == "dynamic"


def test_recurrent_and_quantised_targets_are_refused_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    """Only config.json is there, so that whatever reads weights would fail otherwise."""
    hybrid = MiniMaxConfig(**SHAPE, layer_types=["linear_attention", "full_attention"])
    (tmp_path / "config.json").write_text(json.dumps(hybrid.to_dict()))
    with pytest.raises(UnsupportedModelError, match="MiniMaxForCausalLM has layers of type linear"):
        load_tiny(tmp_path)
    quantised = CONFIGS["llama"].to_dict() | {"quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UnsupportedModelError, match=r"is quantised \(quant_method awq\)"):
        load_tiny(tmp_path)
