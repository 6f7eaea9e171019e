"""The streamed linear layer against torch's: in Triton's interpreter here, compiled on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

from cgbench.kernels.triton_rotary import Rotary

CASES = [
    # rows, outputs, inputs, bias
    (1, 64, 128, False),
    (4, 128, 512, True),
    (5, 100, 208, True),
    (16, 48, 336, False),
    (17, 64, 256, True),
    (32, 40, 96, False),
]
# Sizes of a 7B model's projections, which take other tilings.
WIDER = [(4, 256, 512, True), (16, 96, 1008, False)]
DEVICE_CASES = [
    *CASES,
    *WIDER,
    (4, 6144, 4096, True),
    (32, 22016, 4096, False),
    (3, 4096, 11008, False),
]


def random_rotary(product: Tensor) -> tuple[Rotary, Tensor]:
    """Of all of ``product``'s heads but the last, of the largest size that there are two of; and
    what it leaves, in float64."""
    rows, outputs = product.shape
    size = max(size for size in (8, 20, 32, 128) if outputs % size == 0 and outputs > size)
    cos, sin = torch.randn(2, rows, size, device=product.device, dtype=product.dtype)
    heads = product.double().unflatten(-1, (-1, size))
    turned = heads[:, :-1]
    low, high = turned.chunk(2, dim=-1)
    across = torch.cat((-high, low), dim=-1)
    heads[:, :-1] = turned * cos[:, None] + across * sin[:, None]
    return Rotary(cos, sin, outputs - size), heads.flatten(1)


def relative_error(case: tuple[int, int, int, bool], device: str, dtype: torch.dtype) -> float:
    """Against float64, over splits of K: one, and several that are merged."""
    from cgbench.kernels.triton_linear import Tiling, linear

    rows, outputs, inputs, has_bias = case
    torch.manual_seed(rows)
    # A part of wider rows: consecutive rows are not next to each other in memory.
    x = torch.randn(rows, 2 * inputs, device=device, dtype=dtype)[:, :inputs]
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype) / inputs**0.5
    bias = torch.randn(outputs, device=device, dtype=dtype) if has_bias else None
    wide = None if bias is None else bias.double()
    expected = F.linear(x.double(), weight.double(), wide)
    residual = torch.randn(rows, outputs, device=device, dtype=dtype)
    pairs = []
    splits_of_k = (1, 4) if device == "cpu" else (1, 2, 4, 8)
    for tiling in [None, *(Tiling(32, 64, splits, 4, 3) for splits in splits_of_k)]:
        product = linear(x, weight, bias, tiling=tiling)
        added = linear(x, weight, bias, tiling=tiling, residual=residual)
        pairs += [(product, expected), (added, expected + residual.double())]
        # Rounded where torch's operations round: against them, of the very same product.
        gate, up = product.chunk(2, dim=-1)
        gated = linear(x, weight, bias, tiling=tiling, is_gated=True)
        pairs.append((gated, (F.silu(gate) * up).double()))
        rotary, rotated = random_rotary(product)
        got = linear(x, weight, bias, tiling=tiling, rotary=rotary)
        pairs.append((got, rotated))
    errors = [(got.double() - right).norm() / right.norm() for got, right in pairs]
    return max(float(error) for error in errors)


def test_interpreter_equals_torch() -> None:
    check_interpreted(relative_error, CASES, below=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_the_device(case: tuple[int, int, int, bool], dtype: torch.dtype) -> None:
    # One rounding of the output at the end, and none before it.
    assert relative_error(case, "cuda", dtype) < (4e-3 if dtype == torch.bfloat16 else 5e-4)


@pytest.mark.gpu
def test_splits_are_added_in_one_order() -> None:
    from cgbench.kernels.triton_linear import linear

    x = torch.randn(4, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    first = linear(x, weight, None)
    assert all(torch.equal(linear(x, weight, None), first) for _ in range(50))
