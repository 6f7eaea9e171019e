"""The router against its definition: interpreted here, compiled on a GPU."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from cgbench.kernels.moe.router_rule import RouterRule, route_by_torch
from tests.support.interpreter import check_interpreted, run_interpreted

pytest.importorskip("triton")

QWEN = RouterRule(top_k=4, renormalises=True)
ERNIE = RouterRule(top_k=3, wide_logits=True, renormalises=True, least_sum=1e-12)
DEEPSEEK = RouterRule(
    top_k=4,
    is_sigmoid=True,
    wide_logits=True,
    num_groups=4,
    top_groups=2,
    renormalises=True,
    added_to_sum=1e-20,
    scaling=2.5,
    wide_weights=True,
)


class Case(NamedTuple):
    """``ties``: every expert is there twice, so that every score has its equal."""

    rule: RouterRule
    num_tokens: int
    num_experts: int
    hidden: int
    has_bias: bool = False
    ties: bool = False


CASES = [
    Case(QWEN, 1, 16, 64),
    Case(QWEN, 17, 24, 160, ties=True),
    Case(replace(QWEN, renormalises=False), 4, 16, 72),
    Case(ERNIE, 5, 12, 64, has_bias=True),
    Case(DEEPSEEK, 1, 16, 64, has_bias=True, ties=True),
    Case(DEEPSEEK, 35, 32, 96, has_bias=True),
    Case(replace(DEEPSEEK, num_groups=1, top_groups=1), 2, 20, 64, has_bias=True),
]
DEVICE_CASES = [
    Case(replace(QWEN, top_k=8), 1, 128, 2048),
    Case(replace(QWEN, top_k=8), 256, 256, 2048),
    Case(replace(ERNIE, top_k=6), 64, 64, 2560, has_bias=True),
    Case(replace(DEEPSEEK, top_k=8, num_groups=8, top_groups=4), 64, 256, 7168, has_bias=True),
    Case(replace(DEEPSEEK, top_k=8, num_groups=1, top_groups=1), 4, 128, 4096, has_bias=True),
]


def wrong_choices_or_error(case: Case, device: str, dtype: torch.dtype) -> float:
    """How far weights are from the definition's, or 1 where another expert is chosen."""
    from cgbench.kernels.moe.triton_route import route

    torch.manual_seed(case.num_tokens)
    x = torch.randn(case.num_tokens, case.hidden, device=device, dtype=dtype)
    weight = torch.randn(case.num_experts, case.hidden, device=device) / case.hidden**0.5
    bias = torch.randn(case.num_experts, device=device) / 10 if case.has_bias else None
    if case.ties:
        weight[1::2] = weight[::2]
        if bias is not None:
            bias[1::2] = bias[::2]
    weight = weight.to(dtype)
    weights, chosen = route(x, weight, bias, case.rule)
    # float64 knows no other choice than float32 where scores differ by more than rounding.
    expected_weights, expected = route_by_torch(x, weight, bias, case.rule)
    if not torch.equal(chosen, expected):
        return 1.0
    return float((weights.double() - expected_weights.double()).abs().max())


def test_interpreted_kernel_is_the_definition() -> None:
    check_interpreted(wrong_choices_or_error, CASES, below=2e-6)


def rows_that_differ(case: Case, device: str, dtype: torch.dtype) -> int:
    """How many of up to 64 tokens are routed otherwise alone, or in another order."""
    from cgbench.kernels.moe.triton_route import route

    torch.manual_seed(0)
    x = torch.randn(min(64, case.num_tokens), case.hidden, device=device, dtype=dtype)
    weight = torch.randn(case.num_experts, case.hidden, device=device, dtype=dtype)
    bias = torch.randn(case.num_experts, device=device) / 10 if case.has_bias else None
    together = route(x, weight, bias, case.rule)
    flipped = route(x.flip(0), weight, bias, case.rule)
    differ = torch.zeros(len(x), dtype=torch.bool, device=device)
    for got, expected in zip(flipped, together, strict=True):
        differ |= (got.flip(0) != expected).any(1)
    for row in range(len(x)):
        alone = route(x[row : row + 1], weight, bias, case.rule)
        pairs = zip(alone, together, strict=True)
        differ[row] |= any(bool((got[0] != expected[row]).any()) for got, expected in pairs)
    return int(differ.sum())


def test_a_rows_choice_depends_on_no_other_row() -> None:
    code = (
        f"from {__name__} import CASES, rows_that_differ\n"
        "import torch\n"
        "print('differ', sum(rows_that_differ(case, 'cpu', torch.float32) for case in CASES))"
    )
    assert "differ 0" in run_interpreted(code)


@pytest.mark.parametrize("rule", [QWEN, DEEPSEEK])
def test_of_equal_scores_the_lowest_index_is_chosen(rule: RouterRule) -> None:
    """By definition: of all experts, and of groups."""
    _, chosen = route_by_torch(torch.ones(2, 8), torch.zeros(16, 8), None, rule)
    assert chosen.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES)
def test_a_rows_choice_on_a_gpu_depends_on_no_other_row(case: Case) -> None:
    assert rows_that_differ(case, "cuda", torch.bfloat16) == 0


def test_three_parts_are_a_float32_number() -> None:
    """What the kernel multiplies in bfloat16: parts that sum to the number, bit for bit."""
    wide = torch.randn(4096) * torch.exp2(torch.randint(-40, 40, (4096,)).float())
    rest, parts = wide, []
    for _ in range(3):
        upper = (rest.view(torch.int32) & -65536).view(torch.float32)
        parts.append(upper.bfloat16())
        assert torch.equal(parts[-1].float(), upper)
        rest = rest - upper
    assert torch.equal(sum(part.double() for part in parts), wide.double())


def wide_error(num_tokens: int, device: str, hidden: int = 2560) -> float:
    """How far weights of bfloat16 rows and a float32 router are from float64's, or 1 where another
    expert is chosen. ERNIE's router is float32 in a bfloat16 model."""
    from cgbench.kernels.moe.triton_route import route

    torch.manual_seed(num_tokens)
    x = torch.randn(num_tokens, hidden, device=device, dtype=torch.bfloat16)
    weight = torch.randn(64, hidden, device=device) / hidden**0.5
    bias = torch.randn(64, device=device) / 10
    rule = replace(ERNIE, top_k=6, wide_weights=True)
    weights, chosen = route(x, weight, bias, rule)
    exact = replace(rule, wide_logits=False)
    expected_weights, expected = route_by_torch(x.double(), weight.double(), bias, exact)
    if not torch.equal(chosen, expected):
        return 1.0
    return float((weights.double() - expected_weights.double()).abs().max())


def test_wide_weights_of_bfloat16_rows_are_the_definition() -> None:
    """Rows of one tile, of a part of one, and of more than 16."""
    code = (
        "from tests.support.interpreted_dot import mend\n"
        f"from {__name__} import wide_error\n"
        "mend()\n"
        "print('largest', max(wide_error(count, 'cpu', 320) for count in (1, 17, 260)))"
    )
    assert float(run_interpreted(code).split("largest")[1]) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 5, 64, 256, 300])
def test_wide_weights_on_a_gpu_are_the_definition(num_tokens: int) -> None:
    assert wide_error(num_tokens, "cuda") < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*CASES, *DEVICE_CASES])
def test_kernel_is_the_definition(case: Case) -> None:
    assert wrong_choices_or_error(case, "cuda", torch.float32) < 1e-5
