"""Presets in FP8: what is converted, what it weighs, and that no plain copy stays."""

from dataclasses import replace

import pytest
import torch

from cgbench.checks.reference import Plain
from cgbench.engine.runner import EagerRunner
from cgbench.floor.work import model_work
from cgbench.kernels.fp8.block_scales import FP8
from cgbench.models.fingerprint import fingerprint
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.precision import precision_by_part
from cgbench.models.presets import PRESETS, Preset
from tests.support.presets import shrink_presets
from tests.support.tiny import (
    SHAPE,
    decode_prompts,
    make_speculator,
    make_state,
    random_prompts,
)

CPU = torch.device("cpu")


def plan_of(name: str):  # type: ignore[no-untyped-def]
    return plan_loading(Loading(f"preset:{name}", None, True, CPU, torch.bfloat16))


@pytest.mark.parametrize(("name", "gigabytes"), [("glm-4.5-air-fp8", 111.0), ("mimo-7b-fp8", 9.2)])
def test_they_weigh_what_their_public_checkpoints_do(name: str, gigabytes: float) -> None:
    skeleton = plan_of(name).skeleton
    both = skeleton.weight_bytes(torch.bfloat16) + skeleton.head_bytes(torch.bfloat16)
    assert both / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_what_public_checkpoints_leave_plain_stays_plain() -> None:
    parts = precision_by_part(plan_of("qwen3.5-35b-a3b-fp8").skeleton, torch.bfloat16)
    kinds = {(each.part, each.dtype) for each in parts}
    for part in ("embedding", "lm_head", "head MTP projection", "norms, routers and the rest"):
        assert (part, "bfloat16") in kinds and (part, "float8_e4m3fn") not in kinds
    for part in ("experts", "head experts", "attention"):
        assert (part, "float8_e4m3fn") in kinds
    assert ("experts", "bfloat16") not in kinds


def test_the_floor_counts_bytes_as_they_are_stored() -> None:
    """An FP8 product reads half of what the plain one reads, and a scale for 16,384 weights."""
    fp8, plain = (model_work(plan_of(f"mimo-7b{end}").skeleton) for end in ("-fp8", ""))
    for one, other in zip(fp8.target.products, plain.target.products, strict=True):
        assert one.name == other.name
        halves = one.bytes_read(2) / other.bytes_read(2)
        assert halves == pytest.approx(0.5 + 2 / 16384, rel=2e-3)
    assert fp8.lm_head.products[0].bytes_read(2) == plain.lm_head.products[0].bytes_read(2)
    names = {each.name: each.stored_bytes is None for each in fp8.modules[0].forward.products}
    assert names["proj"] and not names["mlp.up_proj"]


@pytest.mark.parametrize("name", ["mimo-v2-flash-9l", "step-3.5-flash-14l"])
def test_every_module_is_converted_and_experts_in_a_loop_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_presets(monkeypatch)
    monkeypatch.setitem(PRESETS, "it", replace(PRESETS[name], is_fp8=True))
    model = load("preset:it")
    assert model.head is not None
    for module in model.head.mtp_modules:
        assert module.block.mlp.up_proj.weight.dtype == FP8
        assert module.proj.weight.dtype == torch.bfloat16
    experts = model.target.backbone.layers[1].mlp.experts
    assert experts.is_plain and experts.gate_up_proj.dtype == FP8
    spec = make_speculator(model, max_batch_size=2, room=60)
    runner = EagerRunner(spec, make_state(spec, 3, 2))
    prompts = random_prompts(2)
    got = decode_prompts(spec, runner, prompts, 12).token_ids
    plain = Plain(model.target, [])
    assert [tokens[:1] for tokens in got] == [plain.tokens(tuple(p), 1) for p in prompts]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    config = {**SHAPE, "model_type": "mimo", "eos_token_id": 3}
    for name, is_fp8 in (("small", False), ("small-fp8", True)):
        preset = Preset(name, "a test", config, is_fp8=is_fp8)
        monkeypatch.setitem(PRESETS, name, preset)
    return "preset:small-fp8"


def load(ref: str) -> LoadedModel:
    return load_model(Loading(ref, None, True, CPU, torch.bfloat16))


def test_weights_are_drawn_and_then_quantised(small: str) -> None:
    model, plain = load(small), load("preset:small")
    assert (model.quant, plain.quant) == ("w8a16", "none")
    layers = dict(model.target.backbone.layers.named_parameters())
    matrices = [each for each in layers.values() if each.dim() == 2]
    assert matrices and all(each.dtype == FP8 for each in matrices)
    assert model.target.model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert model.head is not None and model.head.proj.weight.dtype == torch.bfloat16
    assert fingerprint(model.target, None) == fingerprint(load(small).target, None)
    assert fingerprint(model.target, None) != fingerprint(plain.target, None)
    ours = model.target.backbone.layers[1].mlp.down_proj
    theirs = plain.target.backbone.layers[1].mlp.down_proj
    x = torch.randn(2, 48, dtype=torch.bfloat16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0.1, atol=0.02)
