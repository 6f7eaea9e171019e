"""The streamed product of FP8 weights against that of their values, in Triton's interpreter here,
compiled on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

CASES = [
    # rows, outputs, inputs, scales: of blocks of so many, of a channel (-1) or of a tensor (0)
    (1, 64, 128, 128),
    (5, 104, 576, 128),
    (4, 48, 352, 64),
    (16, 48, 336, 32),
    (70, 64, 256, 128),
    (4, 64, 208, -1),
    (33, 40, 96, 0),
]
DEVICE_CASES = [
    *CASES,
    (4, 256, 512, 128),
    (5, 208, 576, 128),
    (16, 96, 1008, 32),
    (4, 22016, 4096, 128),
    (256, 4096, 11008, 128),
    (4, 6144, 4096, -1),
]


def relative_error(case: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> float:
    """Against float64, over splits of K and all that can follow the product."""
    from cgbench.kernels.fp8.block_scales import FP8, dequantised, row_blocks_of
    from cgbench.kernels.triton_linear import Scales, Tiling, linear
    from tests.support.product_ends import random_rotary

    rows, outputs, inputs, block = case
    torch.manual_seed(rows)
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device).to(FP8)
    blocks = (outputs if block else 1, 1)
    if block > 0:
        blocks = (-(-outputs // block), -(-inputs // block))
    scale = (torch.rand(blocks, device=device) + 0.5) / inputs**0.5
    row_blocks = row_blocks_of(outputs, blocks[0]).to(device)
    scales = Scales(scale, row_blocks)
    values = dequantised(weight, scale, row_blocks, torch.float32)
    bias = torch.randn(outputs, device=device, dtype=dtype)
    expected = F.linear(x.double(), values.double(), bias.double())
    residual = torch.randn(rows, outputs, device=device, dtype=dtype)
    pairs = []
    for tiling in [None, Tiling(32, 64, 2, 4, 3), Tiling(64, 128, 4, 4, 3)]:
        keywords = {"scales": scales, "tiling": tiling}
        product = linear(x, weight, bias, **keywords)
        added = linear(x, weight, bias, residual=residual, **keywords)
        pairs += [(product, expected), (added, expected + residual.double())]
        gate, up = product.chunk(2, dim=-1)
        gated = linear(x, weight, bias, is_gated=True, **keywords)
        pairs.append((gated, (F.silu(gate) * up).double()))
        rotary, rotated = random_rotary(product)
        pairs.append((linear(x, weight, bias, rotary=rotary, **keywords), rotated))
    errors = [(got.double() - right).norm() / right.norm() for got, right in pairs]
    return max(float(error) for error in errors)


def test_interpreter_equals_the_product_of_the_values() -> None:
    check_interpreted(relative_error, CASES, below=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_the_device(case: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    # One rounding of the output at the end, and none before it: weights are not rounded.
    assert relative_error(case, "cuda", dtype) < (4e-3 if dtype == torch.bfloat16 else 5e-4)
