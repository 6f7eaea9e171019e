"""Multiply few rows of each head by its part of W_UK or W_UV, in Triton.

A program takes one head and some output columns. It asks for all its weights before the kernel
ahead has ended, and then for the rows. ``triton_heads`` asks for one tile of the weights after the
other, which is what many rows need.

The product with W_UV may begin from what the splits of attention leave, and merge them. That saves
a launch, which takes longer than merging a dozen splits again in each of a head's programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.mla.latent_weights import LatentWeights
from cgbench.kernels.triton_splits import Parts, division

MIN_TILE = 16
MAX_ROWS = 32
ELEMENTS = 8192
"""Weights of a program, 64 a thread."""
CHUNK = 16
"""Splits that are asked for at once."""
MAX_MERGED = 32
"""Rows of a head and splits of each, of which every program of the head merges all."""
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _few_rows_kernel(
    x,
    weight,
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
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_VALUE: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    h = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    keep_weight = (k < DEPTH)[:, None] & (n < COLUMNS)[None, :]
    if IS_VALUE:
        of_weight = (h * HEAD_ROWS + FIRST_ROW + n).to(tl.int64)[None, :] * RANK + k[:, None]
    else:
        of_weight = (h * HEAD_ROWS + FIRST_ROW + k).to(tl.int64)[:, None] * RANK + n[None, :]
    w = tl.load(weight + of_weight, mask=keep_weight, other=0.0, cache_modifier=".cg")
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    t = tl.arange(0, BLOCK_T)
    b = t // QUERY_LEN
    s = t % QUERY_LEN
    keep = t < num_rows
    row = b * x_stride_b + h * x_stride_h + s * x_stride_s
    rows = tl.load(
        x + row[:, None] + k[None, :], mask=keep[:, None] & (k < DEPTH)[None, :], other=0.0
    )
    product = tl.dot(rows, w, input_precision=PRECISION)
    to = b * out_stride_b + h * out_stride_h + s * out_stride_s
    tl.store(
        out + to[:, None] + n[None, :],
        product.to(out.dtype.element_ty),
        mask=keep[:, None] & (n < COLUMNS)[None, :],
    )


@triton.jit(do_not_specialize=["num_splits"])  # type: ignore[untyped-decorator]
def _merging_kernel(
    partial_out,
    partial_max,
    partial_sum,
    positions,
    weight,
    out,
    num_splits,
    NUM_HEADS: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_ROWS: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    RANK: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        # The next one is a product: it asks for its weights meanwhile.
        gdc_launch_dependents()
    h = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(2)
    b = t // QUERY_LEN
    s = t % QUERY_LEN
    k = tl.arange(0, BLOCK_K)
    of_weight = (h * HEAD_ROWS + FIRST_ROW + n).to(tl.int64)[:, None] * RANK + k[None, :]
    keep_weight = (n < COLUMNS)[:, None] & (k < RANK)[None, :]
    w = tl.load(weight + of_weight, mask=keep_weight, other=0.0, cache_modifier=".cg")
    # Written at the forward's start, not by the kernel ahead: see ``kernels.gpu``.
    start = tl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(tl.int32)
    num_used = division(start, num_splits, 0, NUM_KEYS)[2] + 1
    if EARLY:
        gdc_wait()
    split = tl.arange(0, SPLITS)
    rows = NUM_HEADS * QUERY_LEN
    of_split = (b * num_splits + split) * rows + h * QUERY_LEN + s
    maxima = tl.load(partial_max + of_split, mask=split < num_used, other=float("-inf"))
    sums = tl.load(partial_sum + of_split, mask=split < num_used, other=0.0)
    highest = tl.max(maxima, 0)
    total = tl.sum(sums * tl.exp2(maxima - highest), 0)
    attended = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, num_used, CHUNK):
        part = first + tl.arange(0, CHUNK)
        of_part = (b * num_splits + part) * rows + h * QUERY_LEN + s
        is_used = part < num_used
        highest_of = tl.load(partial_max + of_part, mask=is_used, other=float("-inf"))
        parts = tl.load(
            partial_out + of_part.to(tl.int64)[:, None] * RANK + k[None, :],
            mask=is_used[:, None] & (k < RANK)[None, :],
            other=0.0,
        )
        attended += tl.sum(parts * tl.exp2(highest_of - highest)[:, None], 0)
    # Rounded as it is where another kernel merges.
    row = (attended / total).to(w.dtype).to(tl.float32)
    product = tl.sum(w.to(tl.float32) * row[None, :], 1)
    to = out + t.to(tl.int64) * (NUM_HEADS * COLUMNS) + h * COLUMNS + n
    tl.store(to, product.to(out.dtype.element_ty), mask=n < COLUMNS)


def takes(num_rows: int, weights: LatentWeights) -> bool:
    """Return whether ``num_rows`` rows of each head are few enough, and ``weights`` not FP8.

    The scales of FP8 blocks multiply partial sums, of which there are none here.
    """
    return num_rows <= MAX_ROWS and weights.scale is None


def merges(num_rows: int, num_splits: int, weights: LatentWeights) -> bool:
    """Return whether ``merged_product`` is to merge ``num_splits`` of ``num_rows`` rows a head."""
    few = 1 < num_splits and num_rows * num_splits <= MAX_MERGED
    return few and takes(num_rows, weights)


def _columns(depth: int) -> int:
    rows = max(MIN_TILE, int(triton.next_power_of_2(depth)))
    return max(MIN_TILE, ELEMENTS // rows)


def product(x: Tensor, out: Tensor, weights: LatentWeights, *, is_value: bool, by: str) -> None:
    """Multiply ``x [B, H, S, depth]`` into ``out``, whose dimensions ``by`` names.

    The names are b requests, h heads, s rows of each. The last dimension is the columns.
    """
    batch, num_heads, query_len, depth = x.shape
    columns = out.shape[3]
    block_n = _columns(depth)
    strides = dict(zip(by, out.stride(), strict=False))
    _few_rows_kernel[(num_heads, triton.cdiv(columns, block_n))](
        x,
        weights.weight,
        out,
        batch * query_len,
        *x.stride()[:3],
        *(strides[each] for each in "bhs"),
        QUERY_LEN=query_len,
        DEPTH=depth,
        COLUMNS=columns,
        HEAD_ROWS=weights.head_rows,
        FIRST_ROW=weights.key_size if is_value else 0,
        RANK=weights.rank,
        BLOCK_T=max(MIN_TILE, triton.next_power_of_2(batch * query_len)),
        BLOCK_K=max(MIN_TILE, triton.next_power_of_2(depth)),
        BLOCK_N=block_n,
        IS_VALUE=is_value,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        EARLY=early(x.device),
        num_warps=NUM_WARPS,
        **launch_keywords(x.device),
    )


def merged_product(
    parts: Parts, positions: Tensor, weights: LatentWeights, num_keys: int, dtype: torch.dtype
) -> Tensor:
    """Merge ``parts``, and multiply by W_UV, to ``[B, S, H, value_size]`` of ``dtype``.

    ``positions [B, S]`` and ``num_keys``, the latents of a tile, determine which splits there are.
    """
    batch, query_len = positions.shape
    num_splits, num_rows = parts.maxima.shape[1:]
    num_heads = num_rows // query_len
    out = torch.empty(
        batch, query_len, num_heads, weights.value_size, dtype=dtype, device=positions.device
    )
    block_n = _columns(weights.rank)
    grid = (num_heads, triton.cdiv(weights.value_size, block_n), batch * query_len)
    _merging_kernel[grid](
        *parts,
        positions,
        weights.weight,
        out,
        num_splits,
        NUM_HEADS=num_heads,
        QUERY_LEN=query_len,
        COLUMNS=weights.value_size,
        HEAD_ROWS=weights.head_rows,
        FIRST_ROW=weights.key_size,
        RANK=weights.rank,
        NUM_KEYS=num_keys,
        SPLITS=triton.next_power_of_2(num_splits),
        CHUNK=CHUNK,
        BLOCK_K=max(MIN_TILE, triton.next_power_of_2(weights.rank)),
        BLOCK_N=block_n,
        EARLY=early(positions.device),
        num_warps=NUM_WARPS,
        **launch_keywords(positions.device),
    )
    return out
