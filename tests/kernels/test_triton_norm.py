"""The norm's kernel against torch's operations: interpreted here, compiled on a GPU."""

import pytest
import torch

from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

CASES = [(1, 32), (5, 1500), (64, 4096)]
EPSILON = 1e-5


def relative_error(shape: tuple[int, int], device: str, dtype: torch.dtype) -> float:
    """Against torch's operations of the same type, with an offset and without."""
    from cgbench.kernels.norm import normed
    from cgbench.kernels.triton_norm import Norm, add_norm, norm

    torch.manual_seed(0)
    # A part of wider rows, of very unequal sizes.
    x = torch.randn(shape[0], 2 * shape[1], device=device)[:, : shape[1]]
    x = (x * 10.0 ** torch.arange(shape[0], device=device).remainder(4)[:, None]).to(dtype)
    weight = torch.randn(shape[1], device=device, dtype=dtype)
    residual = torch.randn_like(x)
    errors = []
    for offset in (0.0, 1.0):
        expected = normed(x, weight, EPSILON, offset).double()
        got = norm(x, Norm(weight, EPSILON, offset)).double()
        errors.append(float((got - expected).norm() / expected.norm()))
        total, got = add_norm(x, residual, Norm(weight, EPSILON, offset))
        assert torch.equal(total, x + residual)
        expected = normed(total, weight, EPSILON, offset).double()
        errors.append(float((got.double() - expected).norm() / expected.norm()))
    return max(errors)


def test_interpreter_equals_torch() -> None:
    check_interpreted(relative_error, CASES, below=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_on_the_device(shape: tuple[int, int]) -> None:
    assert relative_error(shape, "cuda", torch.float32) < 1e-6
    assert relative_error(shape, "cuda", torch.bfloat16) < 1e-3
