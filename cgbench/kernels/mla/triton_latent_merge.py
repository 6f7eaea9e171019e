"""Merge the splits of latent attention, in Triton.

A latent is four times as wide as a head's value, and few requests are split over a hundred
programs. So several programs merge the columns of a row, because one program would wait for the
splits one after another. For the same reason the product with W_UV does not merge its own rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.triton_splits import Parts, division, merged_parts

ELEMENTS = 8192
"""Of a program: 64 float32 a thread."""
NUM_WARPS = 4
MIN_COLUMNS = 32


@triton.jit(do_not_specialize=["num_splits"])  # type: ignore[untyped-decorator]
def _merge_kernel(
    partial_out,
    partial_max,
    partial_sum,
    positions,
    out,
    num_splits,
    NUM_ROWS: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        # The next one is a product: it asks for its weights meanwhile.
        gdc_launch_dependents()
    b = tl.program_id(0) // NUM_ROWS
    m = tl.program_id(0) % NUM_ROWS
    # Written at the forward's start, not by the kernel ahead: see ``kernels.gpu``.
    start = tl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(tl.int32)
    split = tl.arange(0, SPLITS)
    used = split <= division(start, num_splits, 0, BLOCK_N)[2]
    if EARLY:
        gdc_wait()
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_rank = c < RANK
    row = (b * num_splits + split) * NUM_ROWS + m
    maxima = tl.load(partial_max + row, mask=used, other=float("-inf"))
    sums = tl.load(partial_sum + row, mask=used, other=0.0)
    parts = tl.load(
        partial_out + row.to(tl.int64)[:, None] * RANK + c[None, :],
        mask=used[:, None] & in_rank[None, :],
        other=0.0,
    )
    merged = merged_parts(parts, maxima, sums)
    to = out + tl.program_id(0).to(tl.int64) * RANK + c
    tl.store(to, merged.to(out.dtype.element_ty), mask=in_rank)


def merge(parts: Parts, positions: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """Merge the ``parts`` of B requests and their rows, to ``[B, H * S, rank]`` of ``dtype``.

    ``positions [B, S]`` and ``num_keys``, the latents of a tile, determine which splits there are.
    """
    batch, num_splits, num_rows = parts.maxima.shape
    rank = parts.out.shape[3]
    splits = triton.next_power_of_2(num_splits)
    columns = min(triton.next_power_of_2(rank), max(MIN_COLUMNS, ELEMENTS // splits))
    out = torch.empty(batch, num_rows, rank, dtype=dtype, device=positions.device)
    _merge_kernel[(batch * num_rows, triton.cdiv(rank, columns))](
        *parts,
        positions,
        out,
        num_splits,
        NUM_ROWS=num_rows,
        QUERY_LEN=positions.shape[1],
        RANK=rank,
        BLOCK_N=num_keys,
        BLOCK_C=columns,
        SPLITS=splits,
        EARLY=early(positions.device),
        num_warps=NUM_WARPS,
        **launch_keywords(positions.device),
    )
    return out
