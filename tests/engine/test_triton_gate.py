"""The gated activation's kernel against torch's operations: interpreted here, compiled on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from tests.interpreter import run_interpreted

pytest.importorskip("triton")

SHAPES = [(1, 1, 32), (3, 4, 2 * 1500), (64, 4, 2 * 1024)]


def relative_error(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> float:
    from cgbench.engine.triton_gate import gated

    x = 3 * torch.randn(shape, device=device).to(dtype)
    # Where an exponential overflows.
    x[..., 0], x[..., 1] = 200, -200
    gate, up = x.chunk(2, dim=-1)
    expected = (F.silu(gate) * up).double()
    return float((gated(x).double() - expected).norm() / expected.norm())


def test_interpreter_equals_torch() -> None:
    code = (
        "from tests.engine.test_triton_gate import SHAPES, relative_error\n"
        "import torch\n"
        "for shape in SHAPES:\n"
        "    error = relative_error(shape, 'cpu', torch.float32)\n"
        "    assert error < 1e-6, (shape, error)\n"
        "print(len(SHAPES), 'shapes')"
    )
    assert f"{len(SHAPES)} shapes" in run_interpreted(code)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_the_device(shape: tuple[int, int, int]) -> None:
    assert relative_error(shape, "cuda", torch.float32) < 1e-6
    assert relative_error(shape, "cuda", torch.bfloat16) < 1e-3
