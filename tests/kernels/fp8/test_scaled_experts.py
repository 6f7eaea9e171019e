"""The experts' kernels of FP8 weights against the product of their values, in Triton's interpreter
here, compiled on a GPU."""

import pytest
import torch

from cgbench.kernels.fp8.block_scales import quantised, row_blocks_of
from cgbench.kernels.moe.expert_products import (
    Experts,
    ExpertScales,
    SharedExpert,
    apply_by_torch,
    takes_in,
)
from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

from tests.kernels.moe.test_triton_experts import Case, as_wide, choice_of, shared_of

CASES = [
    # As sizes of 1408 are in blocks of 128: the last of each half a part.
    (Case(1, 8, 2, 64, 40, num_padded=0), 32),
    (Case(4, 8, 2, 96, 24, num_padded=1), 16),
    (Case(17, 4, 2, 64, 40), 32),
    # The shared expert's blocks are the experts', in each of its pieces.
    (Case(1, 8, 2, 64, 40, pieces=1), 32),
    (Case(4, 8, 2, 96, 32, num_padded=1, pieces=2, has_gate=True), 16),
    (Case(17, 4, 2, 64, 64, pieces=1, has_gate=True), 32),
]
DEVICE_CASES = [*CASES, (Case(4, 64, 8, 4096, 1408), 128), (Case(64, 64, 8, 2048, 512), 128)]
DEVICE_CASES += [
    (Case(1, 64, 4, 2048, 1536, pieces=1), 128),
    (Case(64, 64, 8, 2048, 512, num_padded=3, pieces=2, has_gate=True), 128),
]


def scaled_experts(case: Case, block: int, device: str) -> Experts:
    """Gate and up converted apart, as checkpoints have them."""
    sizes = case.num_experts, case.intermediate, case.hidden
    gate, up = (torch.randn(sizes, device=device) / case.hidden**0.5 for _ in range(2))
    down = torch.randn(case.num_experts, case.hidden, case.intermediate, device=device)
    pairs = [quantised(each, block) for each in (gate, up, down / case.intermediate**0.5)]
    (gate, of_gate), (up, of_up), (down, of_down) = pairs
    gate_up, of_both = torch.cat((gate, up), 1), torch.cat((of_gate, of_up), 1)
    rows = row_blocks_of(2 * case.intermediate, of_both.shape[1], num_parts=2).to(device)
    down_rows = row_blocks_of(case.hidden, of_down.shape[1]).to(device)
    scales = ExpertScales(of_both, rows), ExpertScales(of_down, down_rows)
    return Experts(gate_up, down, *scales, shared=scaled_shared(case, block, device))


def scaled_shared(case: Case, block: int, device: str) -> SharedExpert | None:
    shared = shared_of(case, device, torch.float32)
    if shared is None:
        return None
    pairs = [quantised(each, block) for each in (*shared.gate_up.chunk(2), shared.down)]
    (gate, of_gate), (up, of_up), (down, of_down) = pairs
    gate_up, of_both = torch.cat((gate, up)), torch.cat((of_gate, of_up))
    rows = row_blocks_of(len(gate_up), len(of_both), num_parts=2).to(device)
    down_rows = row_blocks_of(len(down), len(of_down)).to(device)
    scales = ExpertScales(of_both, rows), ExpertScales(of_down, down_rows)
    return SharedExpert(gate_up, down, shared.gate, *scales)


def relative_error(given: tuple[Case, int], device: str, dtype: torch.dtype) -> float:
    """Against the values' products in float64, in both forms."""
    from cgbench.kernels.moe.expert_plan import plan_of
    from cgbench.kernels.moe.triton_experts import apply

    case, block = given
    torch.manual_seed(case.num_tokens)
    experts = scaled_experts(case, block, device)
    values = experts.values(torch.float32)
    wide = as_wide(values)
    x = torch.randn(case.num_tokens, case.hidden, device=device, dtype=dtype)
    residual = torch.randn_like(x)
    choice = choice_of(case, device, dtype)
    assert experts.shared is None or takes_in(experts, experts.shared)
    expected = apply_by_torch(wide, x.double(), choice, residual.double())
    plan = plan_of(experts, case.num_tokens, case.top_k)
    errors = []
    for has_lists in (False, True):
        got = apply(experts, x, choice, residual, plan._replace(has_lists=has_lists))
        errors.append(float((got.double() - expected).norm() / expected.norm()))
    return max(errors)


def test_the_definition_is_the_product_of_the_values() -> None:
    case = Case(4, 8, 2, 32, 24, pieces=1, has_gate=True)
    experts = scaled_experts(case, 16, "cpu")
    x, choice = torch.randn(4, 32), choice_of(case, "cpu", torch.float32)
    expected = apply_by_torch(experts.values(torch.float32), x, choice, None)
    assert torch.equal(apply_by_torch(experts, x, choice, None), expected)


def test_interpreter_equals_the_product_of_the_values() -> None:
    check_interpreted(relative_error, CASES, below=2e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("given", DEVICE_CASES, ids=str)
def test_on_the_device(given: tuple[Case, int]) -> None:
    # Each pair's part is rounded, and the sum at the end.
    assert relative_error(given, "cuda", torch.bfloat16) < 8e-3
