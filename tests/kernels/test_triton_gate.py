"""The gated activation's kernel against torch's operations: interpreted here, compiled on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

CASES = [(1, 1, 32), (3, 4, 2 * 1500), (64, 4, 2 * 1024)]


def relative_error(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> float:
    from cgbench.kernels.triton_gate import gated

    x = 3 * torch.randn(shape, device=device).to(dtype)
    # Where an exponential overflows.
    x[..., 0], x[..., 1] = 200, -200
    gate, up = x.chunk(2, dim=-1)
    expected = (F.silu(gate) * up).double()
    return float((gated(x).double() - expected).norm() / expected.norm())


def test_interpreter_equals_torch() -> None:
    check_interpreted(relative_error, CASES, below=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_on_the_device(shape: tuple[int, int, int]) -> None:
    assert relative_error(shape, "cuda", torch.float32) < 1e-6
    assert relative_error(shape, "cuda", torch.bfloat16) < 1e-3
