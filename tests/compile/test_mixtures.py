"""Mixtures of transformers' models through our operators: the same numbers and the same tokens."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from cgbench.compile.layers import compile_forwards
from cgbench.compile.mixtures import use_mixture_operators
from cgbench.engine.runner import EagerRunner
from cgbench.kernels.moe.expert_products import Padding
from cgbench.models.division.shards import SumOutput
from cgbench.models.projections import pack_projections
from cgbench.models.router_rules import APPLIES_SHARED
from tests.support.interpreter import check_interpreted, run_interpreted
from tests.support.mixtures import (
    KINDS,
    SHORT_HYBRIDS,
    WITH_SHARED,
    as_operators,
    interpreted_kernels,
    make_block,
    operators_alone,
)
from tests.support.tiny import (
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

SCRATCH_SLOT = 99


class Case(NamedTuple):
    """One block of ``kind``; ``is_skewed``: every token is the same, so all take one choice;
    ``is_packed``: as a loaded model is, so that a shared expert is in the experts' operator."""

    kind: str
    num_tokens: int
    is_skewed: bool = False
    shape: tuple[tuple[str, Any], ...] = ()
    is_packed: bool = True


CASES = [
    # One token or few of each kind, and many of half of the kinds.
    *(Case(kind, num_tokens) for kind in KINDS[::2] for num_tokens in (1, 17)),
    *(Case(kind, 4) for kind in KINDS[1::2]),
    Case("glm4_moe", 64),
    Case("qwen3_moe", 17, is_skewed=True, shape=(("num_experts_per_tok", 1),)),
    Case("qwen3_moe", 17, shape=(("norm_topk_prob", True), ("num_experts_per_tok", 4))),
    Case("deepseek_v3", 64, is_skewed=True),
    Case("deepseek_v3", 17, is_packed=False),
    # A shared expert of several pieces, and one that the experts' kernels do not take.
    Case("deepseek_v3", 17, shape=(("n_shared_experts", 3),)),
    Case("ernie4_5_moe", 4, shape=(("moe_num_shared_experts", 2),)),
    Case("qwen3_5_moe", 17, shape=(("shared_expert_intermediate_size", 48),)),
    Case("qwen3_5_moe", 17, shape=(("shared_expert_intermediate_size", 24),)),
]


def takes_shared(case: Case) -> bool:
    """Whether the experts' operator takes in the shared expert."""
    size = dict(case.shape).get("shared_expert_intermediate_size", 16)
    return case.is_packed and case.kind in WITH_SHARED and size % 16 == 0


def tokens_of(case: Case, block: nn.Module) -> Tensor:
    hidden = next(block.experts.parameters()).shape[-1]  # type: ignore[union-attr]
    x = torch.randn(1, case.num_tokens, hidden)
    return x[:, :1].expand_as(x).contiguous() if case.is_skewed else x


def relative_error(case: Case, device: str, dtype: torch.dtype) -> float:
    """Of a block whose router and experts are our kernels, beside transformers' own."""
    block = make_block(case.kind, **dict(case.shape)).to(device, dtype)
    x = tokens_of(case, block).to(device, dtype)
    expected = block(x)
    if case.is_packed:
        pack_projections(block)
    assert use_mixture_operators(block) == 1
    assert hasattr(block, APPLIES_SHARED) == takes_shared(case)
    with interpreted_kernels(), as_operators():
        got = block(x)
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_of_a_mixture_are_operators(kind: str) -> None:
    """By their definitions in torch, which a CPU runs."""
    block = make_block(kind)
    x = tokens_of(Case(kind, 17), block)
    expected = block(x)
    use_mixture_operators(block)
    assert torch.equal(block(x), expected)
    with as_operators(), torch.profiler.profile() as profile:
        got = block(x)
    torch.testing.assert_close(got, expected)
    names = {event.name for event in profile.events() or ()}
    assert {"cgbench::route", "cgbench::apply_experts"} <= names


def test_interpreted_kernels_are_transformers_own() -> None:
    """Every form of router at 1 to 64 tokens, and all tokens on one expert."""
    pytest.importorskip("triton")
    check_interpreted(relative_error, CASES, below=3e-6)


@pytest.mark.parametrize("kind", WITH_SHARED)
def test_a_shared_expert_is_in_the_operator(kind: str) -> None:
    """No product of its own runs, and outside of compiled forms all is as before."""
    block = make_block(kind)
    pack_projections(block)
    x = tokens_of(Case(kind, 17), block)
    expected = block(x)
    assert use_mixture_operators(block) == 1 and hasattr(block, APPLIES_SHARED)
    assert torch.equal(block(x), expected)
    shared = getattr(block, block.shared_parts.mlp)  # type: ignore[union-attr, arg-type]
    with as_operators(), mock.patch.object(type(shared), "forward", side_effect=AssertionError):
        got = block(x)
    torch.testing.assert_close(got, expected)


def another_sum(block: nn.Module) -> None:
    """The block adds half of its shared expert."""
    kind: Any = type(block)

    class Halves(kind):  # type: ignore[misc]
        def forward(self, hidden: Tensor) -> Tensor:
            x = hidden.view(-1, hidden.shape[-1])
            _, weights, chosen = self.gate(x)
            routed = self.experts(x, chosen, weights)
            return (routed + 0.5 * self.shared_experts(x)).view(hidden.shape)

    block.__class__ = Halves


def weights_swapped(block: nn.Module) -> None:
    """The experts are handed their weights in another order."""
    kind: Any = type(block)

    class Swaps(kind):  # type: ignore[misc]
        def forward(self, hidden: Tensor) -> Tensor:
            x = hidden.view(-1, hidden.shape[-1])
            _, weights, chosen = self.gate(x)
            routed = self.experts(x, chosen, weights.flip(-1))
            return (routed + self.shared_experts(x)).view(hidden.shape)

    block.__class__ = Swaps


def another_activation(block: nn.Module) -> None:
    block.shared_experts.act_fn = nn.GELU()  # type: ignore[union-attr]


def limited_activation(block: nn.Module) -> None:
    block.shared_experts.act_fn = nn.Sequential(nn.SiLU(), nn.Hardtanh(-7.0, 7.0))  # type: ignore[union-attr]


def part_of_its_own(block: nn.Module) -> None:
    block.norm = nn.LayerNorm(32)


def bias_on_down(block: nn.Module) -> None:
    down: Any = block.shared_experts.down_proj  # type: ignore[union-attr]
    down.bias = nn.Parameter(torch.zeros(32), requires_grad=False)


def hooked(block: nn.Module) -> None:
    shared: Any = block.shared_experts
    shared.register_forward_hook(lambda module, args, out: out)


def summed_apart(block: nn.Module) -> None:
    """Ranks share the experts alone."""
    experts: Any = block.experts
    experts.register_forward_hook(SumOutput())


@pytest.mark.parametrize(
    "change",
    [
        another_sum,
        weights_swapped,
        another_activation,
        limited_activation,
        part_of_its_own,
        bias_on_down,
        hooked,
        summed_apart,
    ],
)
def test_a_shared_expert_that_differs_stays_as_it_is(change: Callable[[nn.Module], None]) -> None:
    block = make_block("deepseek_v3")
    pack_projections(block)
    change(block)
    x = tokens_of(Case("deepseek_v3", 4), block)
    expected = block(x)
    assert use_mixture_operators(block) == 1
    assert not hasattr(block, APPLIES_SHARED)
    with as_operators():
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("kind", ["glm4_moe", "qwen3_moe", "qwen3_5_moe"])
def test_a_padded_row_sends_nothing(kind: str) -> None:
    """Its sum is 0, a shared expert included, and the others' are what they are without it, but for
    rounding: the definition multiplies an expert's tokens together."""
    block = make_block(kind)
    pack_projections(block)
    x = tokens_of(Case(kind, 6), block)
    use_mixture_operators(block)
    with as_operators():
        expected = block(x)[0]
    padding = Padding(torch.tensor([0, SCRATCH_SLOT, 2]), SCRATCH_SLOT, 2)
    with as_operators(padding):
        got = block(x)[0]
    assert not got[2:4].any()
    kept = [0, 1, 4, 5]
    torch.testing.assert_close(got[kept], expected[kept])


SIZES = {"few": ((3, 1),), "several": ((1, 3), (5, 0), (17, 0))}
"""Batch sizes and k: steps of 6 tokens, or of 4, 5 and 17."""
MAX_NEW_TOKENS = 4


def wrong_tokens(kind: str, sizes: str) -> int:
    """How many requests are decoded otherwise than by transformers."""
    with TemporaryDirectory() as folder, operators_alone(), interpreted_kernels():
        make_checkpoint(Path(folder), kind, **SHORT_HYBRIDS.get(kind, {}))
        prompts = random_prompts(17)[: max(size for size, _ in SIZES[sizes])]
        expected = greedy_reference(reference_model(Path(folder)), prompts, MAX_NEW_TOKENS)
        model = load_tiny(Path(folder))
        compile_forwards(model.target, model.head)
        spec = make_speculator(model, max_batch_size=17, room=64)
        wrong = 0
        for batch_size, spec_tokens in SIZES[sizes]:
            runner = EagerRunner(spec, make_state(spec, spec_tokens, batch_size))
            out = decode_prompts(spec, runner, prompts[:batch_size], MAX_NEW_TOKENS)
            pairs = zip(out.token_ids, expected[:batch_size], strict=True)
            wrong += sum(ours != theirs for ours, theirs in pairs)
    return wrong


def check_tokens(kind: str, sizes: str) -> None:
    pytest.importorskip("triton")
    code = f"from {__name__} import wrong_tokens\nprint('wrong', wrong_tokens({kind!r}, {sizes!r}))"
    assert "wrong 0" in run_interpreted(code)


def test_tokens_through_interpreted_kernels_are_transformers_own() -> None:
    """Groups, a correction bias, a shared expert, a head with a mixture of its own."""
    check_tokens("glm4_moe", "several")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "glm4_moe"])
def test_tokens_of_every_kind_are_transformers_own(kind: str) -> None:
    check_tokens(kind, "few")


def test_experts_that_differ_stay_as_they_are() -> None:
    """Biases, clamped activations and transposed weights; the router's logits have a bias too."""
    block = make_block("gpt_oss")
    kinds = type(block.experts), type(block.router)
    assert use_mixture_operators(block) == 0
    assert (type(block.experts), type(block.router)) == kinds


def test_a_router_that_differs_stays_as_it_is() -> None:
    block = make_block("hy_v3")
    x = tokens_of(Case("hy_v3", 4), block)
    expected = block(x)
    assert use_mixture_operators(block) == 1
    with as_operators(), torch.profiler.profile() as profile:
        got = block(x)
    torch.testing.assert_close(got, expected)
    names = {event.name for event in profile.events() or ()}
    assert "cgbench::apply_experts" in names and "cgbench::route" not in names
