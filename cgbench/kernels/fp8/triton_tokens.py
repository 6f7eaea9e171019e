"""Quantise activations to FP8 (e4m3) in Triton, and multiply tiles of two FP8 operands.

``token_values`` defines both.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.fp8.block_scales import FP8, column_block
from cgbench.kernels.fp8.token_values import QuantisedTokens
from cgbench.kernels.fp8.triton_kv import UNSCALED, quantised_tile, rows_scale
from cgbench.kernels.gpu import early, launch_keywords

ELEMENTS_A_TILE = 1024
"""A program quantises about so many numbers at once, of one row or of several."""

COLUMNS_AN_INSTRUCTION = tl.constexpr(32)
"""An instruction of the tensor cores multiplies this many columns of FP8 numbers."""


@triton.jit  # type: ignore[untyped-decorator]
def product_of_codes(w, rows, BLOCK_K: tl.constexpr, IS_FLOAT32: tl.constexpr):
    """Return the float32 product of FP8 tiles ``w [N, K]`` and ``rows [K, M]``.

    Fewer columns than an instruction takes are multiplied in float16, which holds every FP8 number.
    So are those of a model in float32, because the FP8 instructions keep about 14 bits of a sum.
    """
    if IS_FLOAT32 or BLOCK_K < COLUMNS_AN_INSTRUCTION:
        return tl.dot(w.to(tl.float16), rows.to(tl.float16))
    else:
        return tl.dot(w, rows)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _tokens_kernel(
    x,
    stored,
    scales,
    num_rows,
    num_inputs,
    x_stride,
    scale_row_stride,
    scale_block_stride,
    COLUMNS_A_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Quantise the columns of one scale, of ``BLOCK_M`` rows."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = m < num_rows
    block = tl.program_id(1)
    first = block * COLUMNS_A_SCALE
    end = tl.minimum(first + COLUMNS_A_SCALE, num_inputs)
    from_x = x + m.to(tl.int64)[:, None] * x_stride
    to_stored = stored + m.to(tl.int64)[:, None] * num_inputs
    scale = tl.zeros([BLOCK_M], tl.float32)
    is_none = tl.zeros([BLOCK_M], tl.int32)
    for k0 in range(first, end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        keep = is_row[:, None] & (k < end)[None, :]
        rows = tl.load(from_x + k[None, :], mask=keep, other=0.0).to(tl.float32)
        scale = tl.maximum(scale, rows_scale(rows, x, 1, UNSCALED))
        is_none |= tl.max((rows != rows).to(tl.int32), 1)
    # What is no number stays none, as in the definition, so that nothing hides it.
    scale = tl.where(is_none > 0, float("nan"), scale)
    for k0 in range(first, end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        keep = is_row[:, None] & (k < end)[None, :]
        rows = tl.load(from_x + k[None, :], mask=keep, other=0.0)
        tl.store(to_stored + k[None, :], quantised_tile(rows, scale[:, None]), mask=keep)
    to_scales = scales + m.to(tl.int64) * scale_row_stride + block * scale_block_stride
    tl.store(to_scales, scale, mask=is_row)


def quantised_tokens(x: Tensor, num_blocks: int, *, by_column: bool = False) -> QuantisedTokens:
    """Compute ``token_values.quantised_tokens`` of ``x [..., K]``, whose rows may lie apart.

    With ``by_column``, ``x`` is ``[M, K]``, and the scales of one block of columns are neighbours.
    """
    rows = x.reshape(-1, x.shape[-1])
    num_rows, num_inputs = rows.shape
    assert rows.stride(1) == 1
    columns = column_block(num_inputs, num_blocks)
    block_k = min(columns, ELEMENTS_A_TILE)
    block_m = min(triton.next_power_of_2(num_rows), ELEMENTS_A_TILE // block_k)
    stored = torch.empty(x.shape, dtype=FP8, device=x.device)
    shape = (num_blocks, num_rows) if by_column else (*x.shape[:-1], num_blocks)
    scales = torch.empty(shape, dtype=torch.float32, device=x.device)
    strides = (1, num_rows) if by_column else (num_blocks, 1)
    _tokens_kernel[(triton.cdiv(num_rows, block_m), num_blocks)](
        rows,
        stored,
        scales,
        num_rows,
        num_inputs,
        rows.stride(0),
        *strides,
        COLUMNS_A_SCALE=columns,
        BLOCK_M=block_m,
        BLOCK_K=block_k,
        EARLY=early(x.device),
        num_warps=4,
        **launch_keywords(x.device),
    )
    return QuantisedTokens(stored, scales.t() if by_column else scales)
