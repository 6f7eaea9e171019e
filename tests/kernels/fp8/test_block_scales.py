"""What an FP8 weight is worth: scales of blocks, of parts of blocks, of channels and of tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.block_scales import (
    FP8,
    column_block,
    column_part,
    dequantised,
    quantised,
    row_blocks_of,
)
from cgbench.kernels.fp8.scaled_products import scaled_linear
from cgbench.kernels.linear import gated_linear, linear_add


def one_by_one(weight: Tensor, scale: Tensor, block: int) -> Tensor:
    """Each value for itself, by the block that it lies in."""
    rows, columns = weight.shape
    values = torch.empty(rows, columns)
    for n in range(rows):
        for k in range(columns):
            values[n, k] = weight[n, k].float() * scale[n // block, k // block]
    return values


@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (9, 20), (8, 17), (3, 40), (1, 1)])
def test_values_are_those_of_their_blocks(rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns).to(FP8)
    scale = torch.rand(-(-rows // 8), -(-columns // 8)) + 0.5
    row_blocks = row_blocks_of(rows, scale.shape[0])
    values = dequantised(weight, scale, row_blocks, torch.float32)
    assert torch.equal(values, one_by_one(weight, scale, 8))
    x = torch.randn(4, columns)
    assert torch.equal(scaled_linear(x, weight, None, scale, row_blocks), F.linear(x, values))


def test_blocks_of_576_columns() -> None:
    assert column_block(576, 5) == 128
    assert column_block(1408, 11) == 128
    assert column_block(704, 11) == 64
    assert column_block(4096, 1) == 4096


def test_weights_one_above_another_have_part_blocks_in_the_middle() -> None:
    assert row_blocks_of(24, 4, num_parts=2).tolist() == [0] * 8 + [1] * 4 + [2] * 8 + [3] * 4
    assert row_blocks_of(6, 2, num_parts=2).tolist() == [0] * 3 + [1] * 3
    assert row_blocks_of(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert row_blocks_of(5, 1).tolist() == [0] * 5


@pytest.mark.parametrize("num_parts", [2, 4])
def test_a_part_that_cuts_a_block_keeps_its_scale(num_parts: int) -> None:
    """1408 columns in two are 704: five blocks and a half."""
    weight, scale = torch.randn(4, 88).to(FP8), torch.rand(1, 11) + 0.5
    row_blocks = row_blocks_of(4, 1)
    whole = dequantised(weight, scale, row_blocks, torch.float32)
    size = 88 // num_parts
    for first in range(0, 88, size):
        part = column_part(scale, 88, first, size)
        mine = weight[:, first : first + size]
        values = dequantised(mine, part, row_blocks, torch.float32)
        assert torch.equal(values, whole[:, first : first + size])


def test_quantised_values_are_near_and_use_all_of_the_range() -> None:
    values = torch.randn(2, 20, 40)
    weight, scale = quantised(values, block=16)
    assert (weight.dtype, scale.shape) == (FP8, (2, 2, 3))
    back = dequantised(weight, scale, row_blocks_of(20, 2), torch.float32)
    # e4m3 keeps three bits after the first.
    assert ((back - values).abs() <= values.abs() / 16 + 1e-2).all()
    assert weight.float().abs().amax() == 448
    zero, one = quantised(torch.zeros(4, 4))
    assert (zero.float() == 0).all() and (one == 1).all()


def test_what_follows_a_product_is_as_of_the_values() -> None:
    torch.manual_seed(0)
    weight, scale = quantised(torch.randn(12, 20), block=8)
    scales = scale, row_blocks_of(12, 2)
    values = dequantised(weight, *scales, torch.float32)
    x, bias, residual = torch.randn(3, 20), torch.randn(12), torch.randn(3, 12)
    assert torch.equal(gated_linear(x, weight, bias, *scales), gated_linear(x, values, bias))
    got = linear_add(x, weight, bias, residual, *scales)
    assert torch.equal(got, linear_add(x, values, bias, residual))


def test_half_precision_rounds_once() -> None:
    weight, scale = quantised(torch.randn(8, 64), block=8)
    row_blocks = row_blocks_of(8, 1)
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    values = dequantised(weight, scale, row_blocks, torch.float32)
    expected = F.linear(x.float(), values).to(torch.bfloat16)
    assert torch.equal(scaled_linear(x, weight, None, scale, row_blocks), expected)
