"""The experts' products against their definition: interpreted here, compiled on a GPU."""

from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from torch import Tensor

from cgbench.kernels.moe.expert_products import (
    Choice,
    Experts,
    ExpertScales,
    Padding,
    SharedExpert,
    apply_by_torch,
    takes_in,
)
from tests.support.interpreter import check_interpreted, run_interpreted
from tests.support.kernel_faults import FAULTS, is_seen

if TYPE_CHECKING:
    from cgbench.kernels.moe.expert_plan import Plan

pytest.importorskip("triton")


SCRATCH_SLOT = 1000


class Case(NamedTuple):
    """``skew``: every token takes the same experts. ``pieces``: how many times their inner size a
    shared expert has, 0 for none."""

    num_tokens: int
    num_experts: int
    top_k: int
    hidden: int
    intermediate: int
    num_padded: int = 0
    skew: bool = False
    query_len: int = 1
    has_residual: bool = True
    pieces: int = 0
    has_gate: bool = False


SHARED_CASES = [
    Case(1, 8, 2, 64, 32, pieces=1),
    Case(2, 16, 2, 48, 40, num_padded=1, pieces=2, has_gate=True),
    Case(4, 8, 4, 64, 32, has_residual=False, pieces=1, has_gate=True),
    # A block of padding alone, and gates of more tokens than a product has tiles.
    Case(40, 8, 3, 80, 24, num_padded=7, query_len=4, pieces=2, has_gate=True),
    Case(17, 8, 2, 64, 32, num_padded=3, pieces=3),
    Case(64, 4, 1, 32, 16, skew=True, pieces=1, has_gate=True),
]
CASES = [
    Case(1, 8, 2, 64, 32),
    Case(2, 16, 2, 48, 40, num_padded=1),
    Case(4, 8, 4, 64, 32, has_residual=False),
    Case(17, 8, 2, 64, 32, num_padded=3),
    Case(17, 4, 1, 32, 16, skew=True),
    Case(40, 8, 3, 80, 24, num_padded=7, query_len=4),
    *SHARED_CASES,
]
DEVICE_CASES = [
    *CASES,
    Case(40, 8, 6, 80, 24, num_padded=7, query_len=4, pieces=2, has_gate=True),
    Case(1, 128, 8, 2048, 768),
    Case(4, 128, 8, 2048, 768),
    Case(16, 64, 6, 2560, 1536, num_padded=2),
    Case(64, 256, 8, 2048, 512, skew=True),
    Case(256, 128, 8, 4096, 704, num_padded=10, query_len=4),
    Case(1024, 64, 8, 1024, 512),
    Case(1, 64, 4, 2048, 1536, pieces=1),
    Case(4, 256, 8, 2048, 512, num_padded=1, pieces=1, has_gate=True),
    Case(16, 64, 6, 2560, 1536, num_padded=2, pieces=2),
    Case(64, 256, 8, 2048, 512, pieces=1, has_gate=True),
    # Above what the launches take in.
    Case(320, 64, 8, 1024, 512, num_padded=3, query_len=4, pieces=2, has_gate=True),
]


def choice_of(case: Case, device: str, dtype: torch.dtype) -> Choice:
    """Distinct experts of each token, the last rows padded."""
    scores = torch.rand(case.num_tokens, case.num_experts, device=device)
    if case.skew:
        scores[1:] = scores[0]
    chosen = scores.argsort(-1)[:, : case.top_k].contiguous()
    weights = torch.rand(case.num_tokens, case.top_k, device=device, dtype=dtype)
    if not case.num_padded:
        return Choice(chosen, weights)
    num_rows = case.num_tokens // case.query_len
    slots = torch.arange(num_rows, device=device)
    slots[num_rows - case.num_padded :] = SCRATCH_SLOT
    return Choice(chosen, weights, Padding(slots, SCRATCH_SLOT, case.query_len))


def poisoned(experts: Experts, choice: Choice) -> Experts:
    """No number where no token that counts sends anything."""
    chosen = choice.chosen
    if choice.padding is not None:
        chosen = chosen[~choice.padding.is_padding()]
    is_read = torch.zeros(experts.num_experts, dtype=torch.bool, device=chosen.device)
    is_read[chosen.flatten()] = True
    nothing = float("nan")
    return Experts(
        experts.gate_up.masked_fill(~is_read[:, None, None], nothing),
        experts.down.masked_fill(~is_read[:, None, None], nothing),
        shared=experts.shared,
    )


def experts_of(case: Case, device: str, dtype: torch.dtype) -> Experts:
    gate_up = torch.randn(case.num_experts, 2 * case.intermediate, case.hidden, device=device)
    down = torch.randn(case.num_experts, case.hidden, case.intermediate, device=device)
    return Experts(
        (gate_up / case.hidden**0.5).to(dtype),
        (down / case.intermediate**0.5).to(dtype),
        shared=shared_of(case, device, dtype),
    )


def shared_of(case: Case, device: str, dtype: torch.dtype) -> SharedExpert | None:
    if not case.pieces:
        return None
    size = case.pieces * case.intermediate
    gate_up = torch.randn(2 * size, case.hidden, device=device) / case.hidden**0.5
    down = torch.randn(case.hidden, size, device=device) / size**0.5
    gate = torch.randn(1, case.hidden, device=device) / case.hidden**0.5
    own = gate.to(dtype) if case.has_gate else None
    return SharedExpert(gate_up.to(dtype), down.to(dtype), own)


def as_wide(experts: Experts) -> Experts:
    """The same values in float64."""
    shared = experts.shared
    if shared is not None:
        gate = None if shared.gate is None else shared.gate.double()
        shared = SharedExpert(shared.gate_up.double(), shared.down.double(), gate)
    return Experts(experts.gate_up.double(), experts.down.double(), shared=shared)


def relative_error(case: Case, device: str, dtype: torch.dtype) -> float:
    """Against the definition in float64, in both forms and after another routing. Infinite where a
    padded token reads an expert: what is there is not a number."""
    from cgbench.kernels.moe.expert_plan import plan_of
    from cgbench.kernels.moe.triton_experts import apply

    torch.manual_seed(case.num_tokens)
    experts = experts_of(case, device, dtype)
    wide = as_wide(experts)
    worst = 0.0
    for _ in range(2):
        choice = choice_of(case, device, dtype)
        plan = plan_of(experts, case.num_tokens, case.top_k)
        for has_lists in (False, True):
            if not has_lists and case.num_tokens > 64:
                continue
            # Another input for each form: what a kernel leaves out must not be right because the
            # memory still holds the other form's.
            x = torch.randn(case.num_tokens, case.hidden, device=device, dtype=dtype)
            residual = torch.randn_like(x) if case.has_residual else None
            wide_residual = None if residual is None else residual.double()
            expected = apply_by_torch(wide, x.double(), choice, wide_residual)
            plan = plan._replace(has_lists=has_lists)
            got = apply(poisoned(experts, choice), x, choice, residual, plan)
            error = (got.double() - expected).norm() / expected.norm()
            worst = max(worst, float(error.nan_to_num(nan=float("inf"))))
    return worst


def test_interpreted_kernels_are_the_definition() -> None:
    check_interpreted(relative_error, CASES, below=2e-6)


def rows_that_differ(case: Case, device: str, dtype: torch.dtype) -> int:
    """How many tokens have other bits alone, or among others in another order, than in a batch: in
    each form with its tilings."""
    from cgbench.kernels.moe.expert_plan import plan_of
    from cgbench.kernels.moe.triton_experts import apply

    torch.manual_seed(case.num_tokens)
    experts = experts_of(case, device, dtype)
    x = torch.randn(case.num_tokens, case.hidden, device=device, dtype=dtype)
    choice = choice_of(case._replace(num_padded=0), device, dtype)
    plan = plan_of(experts, case.num_tokens, case.top_k)
    differ = torch.zeros(case.num_tokens, dtype=torch.bool, device=device)
    for has_lists in (False, True):
        form = plan._replace(has_lists=has_lists)

        def rows(places: Tensor, form: "Plan" = form) -> Tensor:
            part = Choice(choice.chosen[places], choice.weights[places])
            return apply(experts, x[places], part, x[places], form)

        every = torch.arange(case.num_tokens, device=device)
        together = rows(every)
        differ |= (rows(every.flip(0)).flip(0) != together).any(1)
        for token in every[:: max(1, case.num_tokens // 4)]:
            differ[token] |= (rows(token[None])[0] != together[token]).any()
    return int(differ.sum())


BITS = [*CASES[3:5], *SHARED_CASES[2:4]]


def test_a_rows_bits_depend_on_no_other_row() -> None:
    code = (
        f"from {__name__} import BITS, rows_that_differ\n"
        "import torch\n"
        "print('differ', sum(rows_that_differ(case, 'cpu', torch.float32) for case in BITS))"
    )
    assert "differ 0" in run_interpreted(code)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES)
def test_kernels_are_the_definition(case: Case) -> None:
    assert relative_error(case, "cuda", torch.bfloat16) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("case", [each for each in DEVICE_CASES if each.num_tokens <= 64])
def test_a_rows_bits_on_a_gpu_depend_on_no_other_row(case: Case) -> None:
    assert rows_that_differ(case, "cuda", torch.bfloat16) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("asks_early", [False, True])
@pytest.mark.parametrize("has_lists", [False, True])
@pytest.mark.parametrize(
    "case", [CASES[1], CASES[3], CASES[5], Case(16, 64, 6, 2560, 1536, 2), *DEVICE_CASES[-4:]]
)
def test_a_replay_follows_the_routing(case: Case, has_lists: bool, asks_early: bool) -> None:
    """The choice changes between replays, and who is padding."""
    from cgbench.kernels.moe.expert_plan import plan_of
    from cgbench.kernels.moe.triton_experts import apply

    experts = experts_of(case, "cuda", torch.bfloat16)
    x = torch.randn(case.num_tokens, case.hidden, device="cuda", dtype=torch.bfloat16)
    held = choice_of(case, "cuda", torch.bfloat16)
    plan = plan_of(experts, case.num_tokens, case.top_k)
    plan = plan._replace(has_lists=has_lists, asks_early=asks_early)
    apply(experts, x, held, x, plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = apply(experts, x, held, x, plan)
    for _ in range(3):
        choice = choice_of(case, "cuda", torch.bfloat16)
        held.chosen.copy_(choice.chosen)
        held.weights.copy_(choice.weights)
        if held.padding is not None:
            held.padding.slots.copy_(held.padding.slots.roll(1))
        graph.replay()
        expected = apply_by_torch(experts, x, held, x)
        assert float((out - expected).norm() / expected.norm()) < 1e-2
    graph.reset()


FAULTY_CASE = Case(6, 4, 2, 32, 16, num_padded=1, query_len=2, pieces=2, has_gate=True)
"""Several pairs an expert, padded rows, more than one row a request, and a shared expert."""


def unseen_faults() -> list[str]:
    """Those with which the kernels are near their definition still."""

    def error() -> float:
        return relative_error(FAULTY_CASE, "cpu", torch.float32)

    assert error() < 2e-6
    return [name for name in FAULTS if not is_seen(name, error, below=2e-6)]


def test_every_planted_fault_is_seen() -> None:
    code = f"from {__name__} import unseen_faults\nprint('unseen', unseen_faults())"
    assert "unseen []" in run_interpreted(code)


def test_a_shared_expert_of_many_tokens_runs_by_products_of_its_own() -> None:
    from cgbench.kernels.moe import triton_shared

    case = Case(6, 4, 2, 32, 16, num_padded=1, query_len=2, pieces=2, has_gate=True)
    experts, x = experts_of(case, "cpu", torch.float32), torch.randn(6, 32)
    choice = choice_of(case, "cpu", torch.float32)
    for residual in (None, torch.randn_like(x)):
        added = triton_shared.shared_by_products(experts, x, choice, residual)
        got = apply_by_torch(experts.without_shared(), x, choice, added)
        torch.testing.assert_close(got, apply_by_torch(experts, x, choice, residual))


HALF = torch.bfloat16


def shared_like(experts: Experts, size: int, **others: Tensor | ExpertScales) -> SharedExpert:
    hidden = experts.hidden_size
    weights = {"gate_up": torch.zeros(2 * size, hidden), "down": torch.zeros(hidden, size)}
    return SharedExpert(**(weights | others))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "others", "expected"),
    [
        (16, {}, True),
        (32, {}, True),
        (32, {"gate": torch.zeros(1, 32)}, True),
        (24, {}, False),
        (8, {}, False),
        (16, {"gate": torch.zeros(2, 32)}, False),
        (16, {"gate": torch.zeros(1, 32).to(torch.float8_e4m3fn)}, False),
        (16, {"down": torch.zeros(32, 16, dtype=HALF)}, False),
        (16, {"gate_up": torch.zeros(32, 64)[:, ::2]}, False),
        (16, {"down_scales": ExpertScales(torch.ones(1, 1), torch.zeros(32))}, False),
    ],
)
def test_what_the_experts_kernels_take_in(
    size: int, others: dict[str, Tensor | ExpertScales], expected: bool
) -> None:
    experts = Experts(torch.zeros(4, 32, 32), torch.zeros(4, 32, 16))
    assert takes_in(experts, shared_like(experts, size, **others)) == expected


@pytest.mark.parametrize(
    ("blocks", "its_blocks", "expected"),
    [(3, 6, True), (2, 6, False), (1, 2, False), (6, 12, True)],
)
def test_pieces_of_a_shared_expert_cut_no_scale(
    blocks: int, its_blocks: int, expected: bool
) -> None:
    """An inner size of 48, in scales of 16, 32, 64 and 8 columns, and a shared one of 96."""
    rows = torch.zeros(32, dtype=torch.int32)
    of_gate_up = ExpertScales(torch.ones(4, 1, 1), rows.repeat(3))
    experts = Experts(
        torch.zeros(4, 96, 32),
        torch.zeros(4, 32, 48),
        of_gate_up,
        ExpertScales(torch.ones(4, 1, blocks), rows),
    )
    shared = SharedExpert(
        torch.zeros(192, 32),
        torch.zeros(32, 96),
        None,
        ExpertScales(torch.ones(1, 1), rows.repeat(6)),
        ExpertScales(torch.ones(1, its_blocks), rows),
    )
    assert takes_in(experts, shared) == expected
