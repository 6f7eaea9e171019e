"""Multiply each head's rows by its own part of W_UK or W_UV, in Triton.

A program takes one head, some of the requests' rows and some output columns, so a weight is read
once for up to 64 rows. Of an FP8 weight the stored bytes are read: a tile is exact in the rows'
type, and its scale multiplies a float32 partial sum.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.fp8.block_scales import column_block
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.mla.latent_weights import LatentWeights

MIN_TILE = 16
MAX_ROWS = 64
MAX_COLUMNS = 64
MAX_DEPTH = 64

SIZES = ["num_rows"]


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]
def _heads_kernel(
    x,
    weight,
    scale,
    row_blocks,
    out,
    num_rows,
    x_stride_b,
    x_stride_h,
    x_stride_s,
    out_stride_b,
    out_stride_h,
    out_stride_s,
    QUERY_LEN: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_ROWS: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    RANK: tl.constexpr,
    COLUMN_BLOCK: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_VALUE: tl.constexpr,
    IS_SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    h = tl.program_id(0)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    keep = t < num_rows
    in_columns = n < COLUMNS
    b = t // QUERY_LEN
    s = t % QUERY_LEN
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()

    row = b * x_stride_b + h * x_stride_h + s * x_stride_s
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for k0 in range(0, DEPTH, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        in_depth = k < DEPTH
        if IS_VALUE:
            rows_of = (h * HEAD_ROWS + FIRST_ROW + n)[None, :]
            columns_of = k[:, None]
        else:
            rows_of = (h * HEAD_ROWS + FIRST_ROW + k)[:, None]
            columns_of = n[None, :]
        w = tl.load(
            weight + rows_of.to(tl.int64) * RANK + columns_of,
            mask=in_depth[:, None] & in_columns[None, :],
            other=0.0,
        )
        rows = tl.load(
            x + row[:, None] + k[None, :], mask=keep[:, None] & in_depth[None, :], other=0.0
        )
        if IS_SCALED:
            # A tile is of one block: see ``_row_tile``.
            if IS_VALUE:
                first = h * HEAD_ROWS + FIRST_ROW + tl.program_id(2) * BLOCK_N
                column = k0 // COLUMN_BLOCK
            else:
                first = h * HEAD_ROWS + FIRST_ROW + k0
                column = tl.program_id(2) * BLOCK_N // COLUMN_BLOCK
            factor = tl.load(scale + tl.load(row_blocks + first) * SCALE_COLUMNS + column)
            acc += tl.dot(rows, w.to(rows.dtype), input_precision=PRECISION) * factor
        else:
            acc = tl.dot(rows, w, acc, input_precision=PRECISION)
    to = b * out_stride_b + h * out_stride_h + s * out_stride_s
    tl.store(
        out + to[:, None] + n[None, :],
        acc.to(out.dtype.element_ty),
        mask=keep[:, None] & in_columns[None, :],
    )


class _Product(NamedTuple):
    """A product is with one half of the weights. ``depth`` is summed over, ``columns`` come out."""

    is_value: bool
    depth: int
    columns: int
    block_k: int
    block_n: int


def _power_within(size: int) -> int:
    """Return the largest power of two that divides ``size``."""
    return size & -size


def _row_tile(weights: LatentWeights) -> int:
    """Return how many rows of the weight one tile has, a power of two.

    Of an FP8 weight they must be of one block. A block has a power of two of rows, no fewer than
    the rows that this rank holds over the blocks that the whole weight has.
    """
    if weights.scale is None:
        return MAX_DEPTH
    common = min(_power_within(weights.key_size), _power_within(weights.value_size))
    num_blocks = weights.scale.shape[0]
    of_block = MAX_DEPTH
    if num_blocks > 1:
        of_block = 1 << max(0, (weights.weight.shape[0] // num_blocks).bit_length() - 1)
    return min(MAX_DEPTH, common, of_block)


def _column_tile(weights: LatentWeights) -> int:
    """Return how many columns of the weight one tile has, of one block if there are blocks."""
    if weights.scale is None:
        return MAX_COLUMNS
    return min(MAX_COLUMNS, column_block(weights.rank, weights.scale.shape[1]))


def can_multiply(weights: LatentWeights) -> bool:
    """Return whether tiles of an FP8 weight can be of one scale each.

    They can for blocks and for scales of a tensor, and not for a scale of every channel.
    """
    return min(_row_tile(weights), _column_tile(weights)) >= MIN_TILE


def _product(weights: LatentWeights, *, is_value: bool) -> _Product:
    rows, columns = _row_tile(weights), _column_tile(weights)
    if is_value:
        return _Product(True, weights.rank, weights.value_size, columns, rows)
    return _Product(False, weights.key_size, weights.rank, rows, columns)


def absorb(query: Tensor, weights: LatentWeights) -> Tensor:
    """Multiply ``query [B, H, S, key_size]`` by W_UK, to ``[B, H, S, rank]``, contiguous."""
    batch, num_heads, query_len, _ = query.shape
    out = query.new_empty(batch, num_heads, query_len, weights.rank)
    _launch(query, out, weights, is_value=False, by="bhs")
    return out


def project(attended: Tensor, weights: LatentWeights) -> Tensor:
    """Multiply ``attended [B, H, S, rank]`` by W_UV, to ``[B, S, H, value_size]``."""
    batch, num_heads, query_len, _ = attended.shape
    out = attended.new_empty(batch, query_len, num_heads, weights.value_size)
    _launch(attended, out, weights, is_value=True, by="bsh")
    return out


def _launch(x: Tensor, out: Tensor, weights: LatentWeights, *, is_value: bool, by: str) -> None:
    """``by`` names the first three dimensions of ``out``: b requests, h heads, s rows of each."""
    batch, num_heads, query_len, _ = x.shape
    num_rows = batch * query_len
    product = _product(weights, is_value=is_value)
    block_t = min(MAX_ROWS, max(MIN_TILE, triton.next_power_of_2(num_rows)))
    strides = dict(zip(by, out.stride(), strict=False))
    is_scaled = weights.scale is not None
    grid = (
        num_heads,
        triton.cdiv(num_rows, block_t),
        triton.cdiv(product.columns, product.block_n),
    )
    _heads_kernel[grid](
        x,
        weights.weight,
        # Of plain weights neither is read.
        weights.scale if is_scaled else x,
        weights.row_blocks if is_scaled else x,
        out,
        num_rows,
        *x.stride()[:3],
        *(strides[each] for each in "bhs"),
        QUERY_LEN=query_len,
        DEPTH=product.depth,
        COLUMNS=product.columns,
        HEAD_ROWS=weights.head_rows,
        FIRST_ROW=weights.key_size if is_value else 0,
        RANK=weights.rank,
        COLUMN_BLOCK=_column_block(weights),
        SCALE_COLUMNS=1 if weights.scale is None else weights.scale.shape[1],
        BLOCK_T=block_t,
        BLOCK_K=product.block_k,
        BLOCK_N=product.block_n,
        IS_VALUE=is_value,
        IS_SCALED=is_scaled,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        EARLY=early(x.device),
        num_warps=4,
        num_stages=3,
        **launch_keywords(x.device),
    )


def _column_block(weights: LatentWeights) -> int:
    if weights.scale is None:
        return weights.rank
    return column_block(weights.rank, weights.scale.shape[1])
