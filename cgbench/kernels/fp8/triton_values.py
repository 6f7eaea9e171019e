"""Make the values of FP8 weights (e4m3) in Triton: for a product in registers, or in memory.

For a product they become bfloat16. The compiler converts float16 to bfloat16 one number at a time,
on Hopper at an eighth of the rate of other instructions. Here the way is over float32, whose
conversions are fast and take pairs. Each step is exact.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cgbench.kernels.fp8.block_scales import column_block

# A word is two pairs of e4m3. Both become float16, float32, and bfloat16.
_OVER_FLOAT32 = tl.constexpr("""{
.reg .b16 one, other;
.reg .b32 halves;
.reg .f32 low, high;
mov.b32 {one, other}, $2;
cvt.rn.f16x2.e4m3x2 halves, one;
mov.b32 {one, other}, halves;
cvt.f32.f16 low, one;
cvt.f32.f16 high, other;
cvt.rn.bf16x2.f32 $0, high, low;
mov.b32 {one, other}, $2;
cvt.rn.f16x2.e4m3x2 halves, other;
mov.b32 {one, other}, halves;
cvt.f32.f16 low, one;
cvt.f32.f16 high, other;
cvt.rn.bf16x2.f32 $1, high, low;
}""")


@triton.jit  # type: ignore[untyped-decorator]
def exact_values(weights, dtype: tl.constexpr, BY_PARTS: tl.constexpr):
    """Return the values of e4m3 ``weights`` in ``dtype``, which holds them all.

    ``BY_PARTS`` is for Hopper and later, and not for Triton's interpreter.
    """
    if BY_PARTS and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _OVER_FLOAT32,
            "=r,=r,r",
            [weights.to(tl.int8, bitcast=True)],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    return weights.to(dtype)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _values_kernel(
    weight,
    scale,
    row_blocks,
    out,
    num_rows,
    num_inputs,
    scale_rows,
    scale_columns,
    COLUMNS_A_SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    matrix = tl.program_id(2).to(tl.int64)
    is_row = n < num_rows
    keep = is_row[:, None] & (k < num_inputs)[None, :]
    places = (matrix * num_rows + n)[:, None] * num_inputs + k[None, :]
    values = tl.load(weight + places, mask=keep, other=0.0).to(tl.float32)
    block = tl.load(row_blocks + n, mask=is_row, other=0)
    scales = (matrix * scale_rows + block)[:, None] * scale_columns + (k // COLUMNS_A_SCALE)[
        None, :
    ]
    values *= tl.load(scale + scales, mask=keep, other=0.0)
    tl.store(out + places, values.to(out.dtype.element_ty), mask=keep)


ROWS_A_TILE, COLUMNS_A_TILE = 16, 256


def values_of(weight: Tensor, scale: Tensor, row_blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute ``block_scales.dequantised`` in one pass over ``weight [..., N, K]``."""
    num_rows, num_inputs = weight.shape[-2:]
    weight, scale = weight.contiguous(), scale.contiguous()
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    grid = (
        triton.cdiv(num_rows, ROWS_A_TILE),
        triton.cdiv(num_inputs, COLUMNS_A_TILE),
        weight.numel() // max(1, num_rows * num_inputs),
    )
    _values_kernel[grid](
        weight,
        scale,
        row_blocks,
        out,
        num_rows,
        num_inputs,
        *scale.shape[-2:],
        COLUMNS_A_SCALE=column_block(num_inputs, scale.shape[-1]),
        BLOCK_N=ROWS_A_TILE,
        BLOCK_K=COLUMNS_A_TILE,
    )
    return out
