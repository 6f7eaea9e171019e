"""Activations in FP8: what the definition rounds, and the kernel's same numbers in Triton's
interpreter here, compiled on a GPU."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cgbench.kernels.fp8.block_scales import column_block
from cgbench.kernels.fp8.token_values import quantised_tokens, token_values
from tests.support.interpreter import check_interpreted, run_interpreted


class Case(NamedTuple):
    rows: int
    inputs: int
    num_blocks: int


CASES = [
    Case(1, 128, 1),
    Case(5, 576, 5),
    Case(3, 704, 11),
    Case(9, 48, 3),
    Case(7, 208, 1),
    Case(2, 2304, 1),
]
DEVICE_CASES = [*CASES, Case(300, 11008, 86), Case(4, 18432, 1)]


def one_by_one(x: Tensor, columns: int) -> Tensor:
    """Each value for itself, by the largest of its columns."""
    values = torch.empty(x.shape)
    for row in range(x.shape[0]):
        for k in range(x.shape[1]):
            first = k // columns * columns
            top = max(abs(float(each)) for each in x[row, first : first + columns])
            scale = torch.tensor(top) / torch.tensor(448.0)
            values[row, k] = (x[row, k].float() / scale).to(torch.float8_e4m3fn).float() * scale
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("inputs", "num_blocks"), [(16, 2), (20, 3), (40, 1)])
def test_each_token_has_a_scale_in_every_block(
    inputs: int, num_blocks: int, dtype: torch.dtype
) -> None:
    x = torch.randn(3, inputs).to(dtype)
    columns = column_block(inputs, num_blocks)
    assert torch.equal(token_values(x, num_blocks), one_by_one(x, columns))
    stored, scales = quantised_tokens(x, num_blocks)
    assert (stored.shape, scales.shape) == (x.shape, (3, num_blocks))
    assert stored.float().abs().amax() == 448


def test_zeros_stay_zero_and_what_is_no_number_stays_none() -> None:
    x = torch.zeros(3, 32)
    x[1, 3], x[2, 20] = float("nan"), float("inf")
    values = token_values(x, 2)
    assert not values[0].any() and not values[1, 16:].any() and not values[2, :16].any()
    assert values[1, :16].isnan().all() and not values[2, 16:].isfinite().any()


def differing_numbers(case: Case, device: str, dtype: torch.dtype) -> float:
    """How many numbers and scales of the kernel are not the definition's, in two dtypes."""
    from cgbench.kernels.fp8 import triton_tokens

    torch.manual_seed(case.inputs)
    different = 0
    for kind in {dtype, torch.bfloat16}:
        # Rows lie apart, as parts of a packed product do. Their sizes are very unequal.
        whole = torch.randn(case.rows, case.inputs + 32, device=device)
        x = (whole * torch.randn_like(whole).mul(4).exp2()).to(kind)[:, : case.inputs]
        x[0, : min(16, case.inputs)] = 0
        x[-1, 5] = float("nan")
        right = quantised_tokens(x, case.num_blocks)
        got = triton_tokens.quantised_tokens(x, case.num_blocks)
        is_number = ~right.scales.isnan()
        different += int((got.scales.isnan() == is_number).sum())
        different += int((got.scales != right.scales)[is_number].sum())
        columns = column_block(case.inputs, case.num_blocks)
        kept = is_number.repeat_interleave(columns, 1)[:, : case.inputs]
        # A zero of the kernel has no sign. An infinite scale makes codes of no number in both.
        ours, its = got.stored.float(), right.stored.float()
        unlike = (ours != its) & ~(ours.isnan() & its.isnan())
        different += int(unlike[kept].sum())
    return different


def scales_that_differ(case: Case, device: str) -> int:
    """How many scales lie elsewhere, or are others, where a block's are neighbours."""
    from cgbench.kernels.fp8 import triton_tokens

    x = torch.randn(case.rows, case.inputs, device=device)
    stored, scales = triton_tokens.quantised_tokens(x, case.num_blocks, by_column=True)
    right = triton_tokens.quantised_tokens(x, case.num_blocks)
    assert scales.shape == right.scales.shape and scales.stride() == (1, case.rows)
    assert torch.equal(stored.view(torch.uint8), right.stored.view(torch.uint8))
    return int((scales != right.scales).sum())


def test_scales_of_a_block_may_be_neighbours() -> None:
    pytest.importorskip("triton")
    code = (
        f"from {__name__} import CASES, scales_that_differ\n"
        "print('differ', sum(scales_that_differ(case, 'cpu') for case in CASES))"
    )
    assert "differ 0" in run_interpreted(code)


def test_interpreter_gives_the_same_numbers() -> None:
    pytest.importorskip("triton")
    check_interpreted(differing_numbers, CASES, below=1)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
def test_on_the_device(case: Case) -> None:
    assert differing_numbers(case, "cuda", torch.float16) == 0
