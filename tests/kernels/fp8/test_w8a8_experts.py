"""The experts' kernels of quantised tokens and FP8 weights against their definition, in Triton's
interpreter here, compiled on a GPU."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cgbench.kernels.fp8.token_values import token_values
from cgbench.kernels.moe.expert_products import apply_by_torch
from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

from tests.kernels.fp8.test_scaled_experts import CASES as SCALED_CASES
from tests.kernels.fp8.test_scaled_experts import scaled_experts
from tests.kernels.moe.test_triton_experts import Case, choice_of

CASES = [*SCALED_CASES, (Case(40, 4, 2, 32, 80, num_padded=3), 16)]
DEVICE_CASES = [
    *CASES,
    (Case(40, 4, 2, 64, 176, num_padded=3), 16),
    (Case(4, 64, 8, 4096, 1408), 128),
    (Case(64, 64, 8, 2048, 512), 128),
    (Case(2048, 16, 4, 2048, 512), 128),
]

MOST_ERROR = 3e-6
MOST_JUMP = 0.05


def relative_error(given: tuple[Case, int], device: str, dtype: torch.dtype) -> float:
    """Of the middle token, in both forms.

    A last bit of an activation may send it to the FP8 number beside the definition's. So a few
    tokens differ by more, which ``jump`` bounds.
    """
    return max(float(errors.median()) for errors in errors_of(given, device, dtype))


def share_of_bounds(given: tuple[Case, int], device: str, dtype: torch.dtype) -> float:
    """Of both bounds, the larger."""
    every = errors_of(given, device, dtype)
    return max(
        float(max(errors.median() / MOST_ERROR, errors.max() / MOST_JUMP)) for errors in every
    )


def jump(given: tuple[Case, int], device: str, dtype: torch.dtype) -> float:
    """Of the worst token."""
    return max(float(errors.max()) for errors in errors_of(given, device, dtype))


def errors_of(given: tuple[Case, int], device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Each token's error, ``[T]``, without lists and with them."""
    from cgbench.kernels.moe.expert_plan import plan_of
    from cgbench.kernels.moe.triton_experts import apply

    case, block = given
    torch.manual_seed(case.num_tokens)
    experts = replace(scaled_experts(case, block, device), is_w8a8=True)
    x = torch.randn(case.num_tokens, case.hidden, device=device, dtype=dtype)
    residual = torch.randn_like(x)
    choice = choice_of(case, device, dtype)
    expected = apply_by_torch(experts, x, choice, residual)
    plan = plan_of(experts, case.num_tokens, case.top_k)
    errors = []
    for has_lists in (False, True):
        if not has_lists and case.num_tokens > 64:
            continue
        got = apply(experts, x, choice, residual, plan._replace(has_lists=has_lists))
        difference = (got.double() - expected.double()).norm(dim=1)
        errors.append((difference / expected.double().norm(dim=1)).nan_to_num(nan=1.0))
    return errors


def test_the_definition_quantises_tokens_and_activations() -> None:
    case = Case(4, 8, 2, 32, 24)
    experts = replace(scaled_experts(case, 16, "cpu"), is_w8a8=True)
    x, choice = torch.randn(4, 32), choice_of(case, "cpu", torch.float32)
    values = experts.values(torch.float32)
    expected = torch.zeros(4, 32)
    for token in range(4):
        for slot, expert in enumerate(choice.chosen[token].tolist()):
            gate, up = F.linear(token_values(x[token], 2), values.gate_up[expert]).chunk(2, -1)
            row = token_values(F.silu(gate) * up, 2)
            expected[token] += choice.weights[token, slot] * F.linear(row, values.down[expert])
    got = apply_by_torch(experts, x, choice, None)
    assert (got - expected).norm() < 1e-6 * expected.norm()
    plain = apply_by_torch(replace(experts, is_w8a8=False), x, choice, None)
    assert (got - plain).norm() > 1e-3 * expected.norm()


def test_interpreter_equals_the_definition() -> None:
    check_interpreted(share_of_bounds, CASES, below=1)


@pytest.mark.gpu
@pytest.mark.parametrize("given", DEVICE_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_on_the_device(given: tuple[Case, int], dtype: torch.dtype) -> None:
    """In bfloat16 each pair's part is rounded, and every activation before it is quantised."""
    below = 2e-2 if dtype == torch.bfloat16 else MOST_ERROR
    assert relative_error(given, "cuda", dtype) < below
    assert jump(given, "cuda", dtype) < 0.06
