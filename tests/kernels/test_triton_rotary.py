"""The rotary kernel against torch's operations: interpreted here, compiled on a GPU."""

import pytest
import torch

from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

# Rows, outputs, and of how many of them heads of which size are rotated.
CASES = [(1, 64, 32, 16), (5, 2048, 1600, 20), (48, 6144, 5120, 128)]


def relative_error(case: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> float:
    from cgbench.kernels.linear import rotated_linear
    from cgbench.kernels.triton_rotary import Rotary, rotate

    rows, outputs, num_rotated, size = case
    torch.manual_seed(rows)
    product = torch.randn(1, rows, outputs, dtype=dtype)
    # No two quarters of the tables are equal.
    cos, sin = torch.randn(2, 1, rows, size, dtype=dtype)
    # By torch's operations, without rounding.
    wide = (each.double() for each in (product, cos, sin))
    x, wide_cos, wide_sin = wide
    eye = torch.eye(outputs, dtype=torch.float64)
    expected = rotated_linear(x, eye, None, wide_cos, wide_sin, num_rotated)
    got = rotate(product.to(device), Rotary(cos.to(device), sin.to(device), num_rotated)).cpu()
    return float((got.double() - expected).norm() / expected.norm())


def test_interpreter_equals_torch() -> None:
    check_interpreted(relative_error, CASES, below=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_device(case: tuple[int, int, int, int]) -> None:
    assert relative_error(case, "cuda", torch.float32) < 1e-6
    # One rounding, at the end.
    assert relative_error(case, "cuda", torch.bfloat16) < 4e-3
