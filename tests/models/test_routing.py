"""Balanced routing: uniform, without replacement, and a function of the token alone."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from cgbench.engine.runner import EagerRunner
from cgbench.errors import UnsupportedModelError
from cgbench.kernels.expert_draw import ExpertShape, draw_by_torch
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.models.router_rules import is_router
from cgbench.models.routing import BalancedRouting, draw_experts, mixtures_of, seed_hash
from cgbench.words import Routing
from tests.support.interpreter import check_interpreted
from tests.support.presets import MIXTURES, shrink_presets
from tests.support.tiny import make_speculator, make_state, random_prompts

START = seed_hash(7)
SHAPE = ExpertShape(num_experts=16, top_k=3)
MASK = (1 << 32) - 1


def mixed(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def drawn_in_python(
    key: int, position: int, layer: int, start: int, shape: ExpertShape
) -> list[int]:
    """The definition a token at a time: each slot takes the rank-th of the experts still free."""
    step = 0x9E3779B1
    token = mixed((mixed(key & MASK) + position * step) & MASK)
    state = mixed(token ^ mixed((start + layer * step) & MASK))
    free = list(range(shape.num_experts))
    return [
        free.pop((mixed((state + (slot + 1) * step) & MASK) * len(free)) >> 32)
        for slot in range(shape.top_k)
    ]


def draw(batch: int, query_len: int, num_layers: int, shape: ExpertShape, **changes: Any) -> Tensor:
    """``[L, B, S, top_k]`` of requests 100, 101, .. at positions from 50 on."""
    keys = changes.get("keys", torch.arange(batch) + 100)
    positions = changes.get("positions", 50 + torch.arange(query_len).expand(batch, -1))
    start = changes.get("start", START)
    drawn = draw_experts(keys, positions, torch.arange(num_layers), start, shape)
    return drawn.view(num_layers, batch, query_len, shape.top_k)


@pytest.mark.parametrize("shape", [SHAPE, ExpertShape(8, 8), ExpertShape(128, 8)], ids=str)
def test_the_definition_holds_token_by_token(shape: ExpertShape) -> None:
    drawn = draw(3, 4, 2, shape)
    for layer in range(2):
        for request in range(3):
            for offset in range(4):
                expected = drawn_in_python(100 + request, 50 + offset, layer, START, shape)
                assert drawn[layer, request, offset].tolist() == expected


def test_a_token_takes_no_expert_twice() -> None:
    drawn = draw(64, 4, 8, SHAPE).flatten(0, 2)
    assert all(len(set(row)) == SHAPE.top_k for row in drawn.tolist())
    assert set(drawn.flatten().tolist()) == set(range(SHAPE.num_experts))


@pytest.mark.parametrize("slot", range(SHAPE.top_k))
def test_every_slot_is_uniform(slot: int) -> None:
    chosen = draw(256, 8, 16, SHAPE)[..., slot].flatten()
    counts = torch.bincount(chosen, minlength=SHAPE.num_experts)
    assert chisquare(counts.numpy()).pvalue > 1e-4


def test_layers_requests_and_positions_are_independent() -> None:
    """Of pairs that differ in one of them, as many share their first expert as chance has it."""
    first = draw(200, 20, 4, ExpertShape(16, 1))[..., 0]
    for dim in range(3):
        shifted = first.roll(1, dim)
        assert (first == shifted).double().mean().item() == pytest.approx(1 / 16, abs=0.006)


@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 6), (128, 8), (256, 8)])
@pytest.mark.parametrize("num_tokens", [1, 4, 32, 256])
def test_distinct_experts_are_as_many_as_expected(
    num_experts: int, top_k: int, num_tokens: int
) -> None:
    drawn = draw(num_tokens, 1, 64, ExpertShape(num_experts, top_k)).flatten(1)
    distinct = sum(len(set(row)) for row in drawn.tolist()) / 64
    expected = num_experts * (1 - (1 - top_k / num_experts) ** num_tokens)
    assert distinct == pytest.approx(expected, rel=0.03)


def test_experts_depend_on_the_token_alone() -> None:
    """Alone, in a batch, in another row, or with other rows a request: the same experts."""
    whole = draw(5, 4, 3, SHAPE)
    alone = draw(1, 1, 3, SHAPE, keys=torch.tensor([103]), positions=torch.tensor([[52]]))
    assert torch.equal(alone[:, 0, 0], whole[:, 3, 2])
    other_order = draw(
        2, 2, 3, SHAPE, keys=torch.tensor([104, 100]), positions=torch.tensor([[50, 51], [51, 52]])
    )
    assert torch.equal(other_order[:, 0], whole[:, 4, :2])
    assert torch.equal(other_order[:, 1], whole[:, 0, 1:3])
    assert not torch.equal(draw(5, 4, 3, SHAPE, start=seed_hash(8)), whole)


CASES = [(1, 1, 16, 3), (5, 4, 128, 8), (33, 2, 8, 8)]


def kernel_difference(case: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> float:
    """How many experts the kernel draws otherwise than the definition."""
    from cgbench.kernels.triton_draw import draw as draw_by_kernel

    batch, query_len, num_experts, top_k = case
    shape = ExpertShape(num_experts, top_k)
    keys = torch.randint(-(1 << 40), 1 << 40, (batch,))
    positions = torch.randint(1 << 20, (batch, query_len))
    layers = torch.tensor([0, 3, 47])
    expected = torch.empty(3, batch * query_len, top_k, dtype=torch.long)
    draw_by_torch(keys, positions, layers, START, shape, expected)
    got = torch.full_like(expected, -1, device=device)
    args = (each.to(device) for each in (keys, positions, layers))
    draw_by_kernel(*args, START, shape, got)
    return float((got.cpu() != expected).sum())


def test_the_kernel_draws_as_defined() -> None:
    pytest.importorskip("triton")
    check_interpreted(kernel_difference, CASES, below=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_on_the_device(case: tuple[int, int, int, int]) -> None:
    assert kernel_difference(case, "cuda", torch.float32) == 0


def test_layers_of_unlike_mixtures_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="--routing balanced"):
        BalancedRouting({0: ExpertShape(8, 2), 1: ExpertShape(16, 2)}, seed=0)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_presets(monkeypatch)


def load(name: str, routing: Routing) -> LoadedModel:
    where = torch.device("cpu"), torch.float32
    return load_model(Loading(f"preset:{name}", None, True, *where, routing=routing))


@pytest.mark.parametrize("name", MIXTURES)
def test_every_mixture_is_handed_what_is_drawn(name: str) -> None:
    """In every layer of the target and its head, whatever its router says and its groups allow."""
    model = load(name, Routing.BALANCED)
    assert model.routing is Routing.BALANCED
    mixtures = mixtures_of(model.target.backbone, model.head)
    seen: dict[int, Tensor] = {}
    handles = [
        mixture.register_forward_pre_hook(
            lambda _, args, number=number: seen.update({number: args[1]})
        )
        for number, mixture in mixtures.items()
    ]
    spec = make_speculator(model, max_batch_size=3, room=64)
    runner = EagerRunner(spec, make_state(spec, 0, 3))
    prompts = random_prompts(3, vocab=128)
    longest = max(map(len, prompts))
    from cgbench.engine.prefill import prefill

    prefill(spec, prompts, 1 << 20)
    for handle in handles:
        handle.remove()
    assert runner.mode(1) == "eager"
    shape = model.skeleton.kv.expert_shapes[next(iter(mixtures))]
    for number, experts in seen.items():
        rows = experts.view(3, longest, -1)
        for request, prompt in enumerate(prompts):
            for position in (0, len(prompt) - 1):
                expected = drawn_in_python(prompt[0], position, number, seed_hash(0), shape)
                assert rows[request, position].tolist() == expected
    assert set(seen) == set(mixtures)


def test_a_checkpoints_own_router_chooses_by_default() -> None:
    model = load("qwen3-30b-a3b", Routing.MODEL)
    assert model.routing is Routing.MODEL and model.target.routing is None


def test_a_dense_model_has_nothing_to_balance() -> None:
    assert load("mimo-7b", Routing.BALANCED).routing is Routing.MODEL


@pytest.mark.parametrize("name", MIXTURES)
def test_the_best_expert_is_first_where_others_are_drawn(name: str) -> None:
    """Weights are paired with the drawn experts, so decode and prefill must order them alike."""
    model = load(name, Routing.BALANCED)
    x = torch.randn(64, 64)
    routers = [
        part
        for block in model.target.model.modules()
        if hasattr(block, "experts")
        for part in block.children()
        if is_router(part, block.experts)
    ]
    assert routers
    for router in routers:
        # Random weights have no correction, so the best expert has the largest weight.
        _, weights, _ = router(x)
        assert (weights.diff(dim=-1) <= 0).all()
