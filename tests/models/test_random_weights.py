"""A preset's weights: all of them drawn, and as transformers draws its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cgbench.models import loader, random_weights
from cgbench.models.checkpoint import config_from_dict
from cgbench.models.division.planned_splits import delta_net_splits
from cgbench.models.division.splits import Split
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.presets import PRESETS
from cgbench.models.random_weights import Unit, _draw
from cgbench.models.support import auto_class_for
from cgbench.parallel.ranks import Ranks
from tests.support.presets import shrink_presets

# FP8 weights are drawn as the plain ones of their shape, and then quantised.
PLAIN = [name for name, preset in PRESETS.items() if not preset.is_fp8]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_presets(monkeypatch)


def load(name: str) -> LoadedModel:
    where = torch.device("cpu"), torch.float32
    return load_model(Loading(f"preset:{name}", None, True, *where))


def floats(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}


def is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written is NaN, or a huge number where it is no float."""
    real = torch.empty_like

    def empty_like(tensor: Tensor, **keywords: object) -> Tensor:
        empty = real(tensor, **keywords)  # type: ignore[arg-type]
        return empty.fill_(torch.nan if empty.is_floating_point() else 1 << 20)

    with mock.patch.object(torch, "empty_like", empty_like):
        yield


@pytest.mark.parametrize("name", PRESETS)
def test_weights_are_drawn(name: str) -> None:
    """Nothing is left unwritten, and what is plain is as transformers draws it."""
    with poisoned():
        model = load(name)
    for module in (model.target.model, model.head):
        assert module is not None
        for tensor_name, tensor in floats(module).items():
            assert not tensor.isnan().any(), tensor_name
    if name in PLAIN:
        is_drawn_alike(name, model.target.model)
        are_matrices_drawn(model.head)


def is_drawn_alike(name: str, model: nn.Module) -> None:
    """Constant where transformers' own initialisation is, of the same deviation where it is not."""
    torch.manual_seed(0)
    config = config_from_dict(dict(PRESETS[name].config))
    expected = floats(auto_class_for(config).from_config(config, dtype=torch.float32))
    got = floats(model)
    # Projections that the engine packs are gone, and the packed one is theirs together.
    shared = expected.keys() & got.keys()
    assert len(shared) > 0.6 * len(expected)
    for tensor_name in shared:
        ours, its = got[tensor_name], expected[tensor_name]
        assert is_constant(ours) == is_constant(its), tensor_name
        if is_constant(its):
            assert ours.flatten()[0] == its.flatten()[0], tensor_name
        elif its.numel() > 500:
            assert ours.std().item() == pytest.approx(its.std().item(), rel=0.2), tensor_name


def are_matrices_drawn(head: nn.Module) -> None:
    for tensor_name, tensor in floats(head).items():
        if tensor.dim() > 1 and "conv" not in tensor_name:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.3), tensor_name


@pytest.mark.parametrize("name", ["qwen3-next-80b-a3b", "qwen3-next-80b-a3b-fp8"])
def test_a_rank_holds_one_layer_whole_at_most(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the next layer is drawn, those before it are this rank's part of the one model."""
    ranks = Ranks(1, 2)
    request = Loading(f"preset:{name}", None, False, torch.device("cpu"), torch.float32)
    whole = load_model(request).target.model
    plan = plan_loading(replace(request, ranks=ranks))
    model = plan.skeleton.target.model
    splits = delta_net_splits(model, 2)
    for layer in range(4):
        experts = f"model.layers.{layer}.mlp.experts"
        splits[f"{experts}.gate_up_proj"] = Split(1, (1, 1))
        splits[f"{experts}.down_proj"] = Split(2)
    held: list[int] = []

    def draw(unit: Unit, model: PreTrainedModel, *others: Any) -> None:
        own = {name: p for name, p in model.named_parameters() if not p.is_meta}
        divided = own.keys() & splits.keys()
        held.append(len(divided))
        for each in divided:
            assert own[each].numel() * 2 == plan.skeleton.target.model.get_parameter(each).numel()
        _draw(unit, model, *others)

    monkeypatch.setattr(random_weights, "_draw", draw)
    made = loader._make_target(plan, splits)
    assert held == sorted(set(held)) and len(held) == 5 and held[-1] == len(splits)
    for each, split in splits.items():
        own, its = made.get_parameter(each), split.part(whole.get_parameter(each), ranks)
        assert own.view(torch.uint8).equal(its.view(torch.uint8))


def test_a_tensor_that_no_module_initialises_is_drawn() -> None:
    model = load("mimo-7b").target.model
    stray = nn.Module()
    with torch.device("meta"):
        stray.weight = nn.Parameter(torch.empty(40, 50))
        stray.scale = nn.Parameter(torch.empty(50))
        stray.register_buffer("correction_bias", torch.empty(50))
    _draw([("stray", stray)], model, torch.device("cpu"), lambda _, tensor: tensor)
    assert stray.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.1)
    assert set(stray.scale.tolist()) == {1.0} and set(stray.correction_bias.tolist()) == {0.0}


def test_a_router_that_transformers_leaves_alone_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in transformers 5.17, where ERNIE's router keeps the zeros of its constructor."""
    from transformers.models.ernie4_5_moe import modeling_ernie4_5_moe as ernie

    real = ernie.Ernie4_5_MoePreTrainedModel._init_weights

    def init_weights(self: nn.Module, module: nn.Module) -> None:
        if not isinstance(module, ernie.Ernie4_5_MoeTopKRouter):
            real(self, module)

    monkeypatch.setattr(ernie.Ernie4_5_MoePreTrainedModel, "_init_weights", init_weights)
    routers = [
        module
        for module in load("ernie-4.5-21b-a3b").target.model.modules()
        if isinstance(module, ernie.Ernie4_5_MoeTopKRouter)
    ]
    assert routers
    for router in routers:
        assert router.weight.std().item() == pytest.approx(0.02, rel=0.2)
