"""Rows as pairs of FP8 numbers, and the sums of their products: interpreted here, compiled on a
GPU."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels import linear
from cgbench.kernels.fp8 import library_products
from cgbench.kernels.fp8.block_scales import dequantised, quantised, row_blocks_of
from tests.support.interpreter import run_interpreted

pytest.importorskip("triton")

SHAPES = [(1, 128), (5, 640), (11, 2304)]
DEVICE_SHAPES = [*SHAPES, (256, 11008), (250, 4096)]


def uneven(rows: int, inputs: int, device: str) -> Tensor:
    """Rows of very unequal sizes, one of them zero, whose numbers are unequal too."""
    x = torch.randn(rows, inputs, device=device)
    x *= torch.logspace(-30, 30, rows, device=device)[:, None]
    x *= torch.randn_like(x).mul(3).exp2()
    x[rows // 2] = 0
    return x.bfloat16()


def wrong_numbers(shape: tuple[int, int], device: str) -> int:
    """How many numbers are further off than the pair of their 128 columns allows."""
    from cgbench.kernels.fp8.triton_pairs import pairs_of

    x = uneven(*shape, device)
    pairs = pairs_of(x)
    values = pairs.stored.double() * pairs.scales.double().repeat_interleave(128, dim=1)
    rows, half = len(x), len(values) // 2
    error = (values[:rows] + values[half : half + rows] - x.double()).abs()
    blocks = x.double().abs().unflatten(1, (-1, 128)).amax(2)
    largest = blocks.repeat_interleave(128, dim=1)
    limit = torch.where(x.double().abs() < largest * 2.0**-13, largest * 2.0**-21, 0.0)
    return int((error > limit).sum())


def sums_error(device: str) -> float:
    """Of both ends and of none, in float32 and over the largest number, with rows that are no
    multiple of 8."""
    from cgbench.kernels.fp8.triton_pairs import sums_of

    parts = torch.randn(32, 2560, device=device)
    whole, bias = parts[:11] + parts[16:27], torch.randn(2560, device=device)
    residual = torch.randn(11, 2560, device=device)
    gate, up = (whole + bias).chunk(2, dim=1)
    found = [
        (sums_of(parts, 11, None, torch.float32), whole),
        (sums_of(parts, 11, bias, torch.float32, residual=residual), whole + bias + residual),
        (sums_of(parts, 11, bias, torch.float32, is_gated=True), F.silu(gate) * up),
    ]
    return max(float((got - right).abs().max() / right.abs().max()) for got, right in found)


def odd_rows(device: str) -> list[bool]:
    """Whether each of three rows is finite as a pair: one of numbers, one with infinity, one with
    what is no number."""
    from cgbench.kernels.fp8.triton_pairs import pairs_of

    x = torch.ones(3, 128, dtype=torch.bfloat16, device=device)
    x[1, 5], x[2, 7] = math.inf, math.nan
    pairs = pairs_of(x)
    return [bool(each) for each in (pairs.stored.float() * pairs.scales)[:3].isfinite().all(1)]


def laid_scales_are_right(device: str) -> bool:
    """Scales of a weight come with a larger pitch, whatever their number."""
    from cgbench.kernels.fp8.triton_pairs import pairs_of

    scale = torch.rand(17, 5, device=device)
    laid = pairs_of(torch.randn(3, 640, device=device).bfloat16(), scale, 8).laid
    return laid is not None and laid.shape == (17, 8) and torch.equal(laid[:, :5], scale)


def test_interpreted_pairs_and_their_sums() -> None:
    code = (
        f"import {__name__} as tests\n"
        "print('wrong', sum(tests.wrong_numbers(shape, 'cpu') for shape in tests.SHAPES))\n"
        "print('sums', tests.sums_error('cpu') < 1e-6)\n"
        "print('finite', tests.odd_rows('cpu'))\n"
        "print('laid', tests.laid_scales_are_right('cpu'))"
    )
    out = run_interpreted(code).splitlines()
    assert out == ["wrong 0", "sums True", "finite [True, False, False]", "laid True"]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", DEVICE_SHAPES, ids=str)
def test_pairs_on_a_gpu(shape: tuple[int, int]) -> None:
    assert wrong_numbers(shape, "cuda") == 0
    assert sums_error("cuda") < 1e-6
    assert odd_rows("cuda") == [True, False, False]
    assert laid_scales_are_right("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(256, 6144, 4096), (65, 4096, 11008), (100, 2048, 7168)]
)
def test_products_of_pairs_round_once_on_a_gpu(rows: int, outputs: int, inputs: int) -> None:
    """Each row for itself, with scales of very unequal sizes. The tensor cores' sums of 14 bits may
    add a tenth to the one rounding of bfloat16."""
    torch.manual_seed(rows)
    x = (
        torch.randn(rows, inputs, device="cuda")
        * torch.logspace(-3, 3, rows, device="cuda")[:, None]
    )
    x = x.bfloat16()
    drawn = torch.randn(outputs, inputs, device="cuda")
    drawn *= torch.logspace(-1, 1, outputs, device="cuda")[:, None]
    weight, scale = quantised(drawn)
    row_blocks = row_blocks_of(outputs, scale.shape[0]).cuda()
    assert library_products.can_multiply_pairs(x, weight, scale)
    values = dequantised(weight, scale, row_blocks, torch.float32)
    expected = F.linear(x.double(), values.double())

    def error(got: Tensor, right: Tensor) -> float:
        return float(((got.double() - right).norm(dim=1) / right.norm(dim=1)).max())

    rounding = error(expected.bfloat16(), expected)
    got = linear.linear(x, weight, None, scale, row_blocks)
    assert error(got, expected) < 1.1 * rounding
    residual = torch.randn_like(got)
    added = linear.linear_add(x, weight, None, residual, scale, row_blocks)
    assert torch.equal(added, got + residual)
    gate, up = got.chunk(2, dim=-1)
    gated = linear.gated_linear(x, weight, None, scale, row_blocks)
    assert error(gated, (F.silu(gate) * up).double()) < 4e-3


def test_few_and_very_many_rows_are_multiplied_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_products, "_has_product", lambda device: True)

    def takes(rows: int, outputs: int = 128, dtype: torch.dtype = torch.bfloat16) -> bool:
        weight, scale = quantised(torch.zeros(outputs, 512))
        x = torch.zeros(rows, 512, dtype=dtype)
        return library_products.can_multiply_pairs(x, weight, scale)

    assert [takes(rows) for rows in (64, 65, 512, 513)] == [False, True, True, False]
    # Of many outputs a few rows less.
    assert [takes(rows, 7168) for rows in (32, 33)] == [False, True]
    assert not takes(65, dtype=torch.float32)
