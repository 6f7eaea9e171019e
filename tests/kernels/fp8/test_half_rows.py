"""Rows brought to float16, and products of FP8 weights with them: interpreted here, compiled on a
GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.interpreter import run_interpreted

pytest.importorskip("triton")

SHAPES = [(1, 48), (5, 576), (3, 2304)]
DEVICE_SHAPES = [*SHAPES, (256, 11008), (4, 18432)]

CASES = [(16, 64, 256), (70, 96, 272)]
"""Rows, outputs and inputs."""
DEVICE_CASES = [*CASES, (32, 4096, 11008), (256, 6144, 4096)]


def uneven(rows: int, inputs: int, device: str) -> Tensor:
    """Rows of very unequal sizes, one of them zero, whose numbers are unequal too."""
    x = (
        torch.randn(rows, inputs, device=device)
        * torch.logspace(-30, 30, rows, device=device)[:, None]
    )
    x *= torch.randn_like(x).mul(3).exp2()
    x[rows // 2] = 0
    return x.bfloat16()


def wrong_numbers(shape: tuple[int, int], device: str) -> int:
    """How many numbers are further off than what float16 has below 2 ** -28 of the largest."""
    from cgbench.kernels.fp8.triton_halves import half_rows

    x = uneven(*shape, device)
    values, factors = half_rows(x)
    got = values.double() * factors.double()[:, None]
    largest = x.double().abs().amax(1, keepdim=True)
    error = (got - x.double()).abs()
    is_small = x.double().abs() < largest * 2.0**-28
    limit = torch.where(is_small, largest * 2.0**-39, 0.0)
    return int((error > limit).sum())


def relative_error(case: tuple[int, int, int], device: str) -> float:
    """Of each row for itself, against float64, with rows a tile and splits of K."""
    from cgbench.kernels.fp8.block_scales import dequantised, quantised, row_blocks_of
    from cgbench.kernels.triton_linear import Scales, Tiling, linear

    rows, outputs, inputs = case
    torch.manual_seed(rows)
    x = (
        torch.randn(rows, inputs, device=device)
        * torch.logspace(-3, 3, rows, device=device)[:, None]
    )
    x = x.bfloat16()
    weight, scale = quantised(torch.randn(outputs, inputs, device=device))
    scales = Scales(scale, row_blocks_of(outputs, scale.shape[0]).to(device))
    values = dequantised(weight, scale, scales.row_blocks, torch.float32)
    expected = F.linear(x.double(), values.double())
    worst = 0.0
    for splits, block_m in ((1, 16), (2, 64), (1, 128)):
        tiling = Tiling(64, 128, splits, 4, 3, block_m, in_float16=True)
        got = linear(x, weight, None, scales=scales, tiling=tiling).double()
        errors = (got - expected).norm(dim=1) / expected.norm(dim=1)
        worst = max(worst, float(errors.max()))
    return worst


def test_interpreted_rows_are_exact_and_products_round_once() -> None:
    code = (
        f"from {__name__} import CASES, SHAPES, relative_error, wrong_numbers\n"
        "print('wrong', sum(wrong_numbers(shape, 'cpu') for shape in SHAPES))\n"
        "print('largest', max(relative_error(case, 'cpu') for case in CASES))"
    )
    out = run_interpreted(code)
    # The interpreter cuts bits off, where a GPU rounds.
    assert "wrong 0\n" in out and float(out.split("largest")[1]) < 8e-3


@pytest.mark.gpu
@pytest.mark.parametrize("shape", DEVICE_SHAPES, ids=str)
def test_rows_on_a_gpu_are_exact(shape: tuple[int, int]) -> None:
    assert wrong_numbers(shape, "cuda") == 0


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
def test_products_on_a_gpu_round_once(case: tuple[int, int, int]) -> None:
    assert relative_error(case, "cuda") < 4e-3
