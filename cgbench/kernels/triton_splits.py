"""Split decode attention over the keys, and merge the splits.

Each split of a request's keys leaves its sum of values, its scores' maximum and its sum of weights.
One kernel merges them by their maxima (the flash-decoding scheme, Dao et al. 2023).
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords

# The merge kernel loads all splits of a row as one tile.
MAX_SPLITS = 32
PROGRAMS_PER_MULTIPROCESSOR = 2
ELEMENTS_A_WARP = 4096
"""A warp merges this many elements: 128 float32 a thread, or 32 splits of values of 128."""


class Parts(NamedTuple):
    """Parts are what the splits leave, in float32.

    P is the pairs of request and KV head, and M the query rows of each. ``out`` is
    ``[P, splits, M, Dv]``. ``maxima`` and ``sums`` are ``[P, splits, M]``. They are empty if there
    is one split, because it is the whole and goes straight to the output.
    """

    out: Tensor
    maxima: Tensor
    sums: Tensor

    @classmethod
    def empty(
        cls, pairs: int, num_splits: int, num_rows: int, value_dim: int, device: torch.device
    ) -> Self:
        """Allocate parts that the splits have yet to fill."""
        shape = (0 if num_splits == 1 else pairs, num_splits, num_rows)
        maxima = torch.empty(shape, dtype=torch.float32, device=device)
        out = torch.empty((*shape, value_dim), dtype=torch.float32, device=device)
        return cls(out, maxima, torch.empty_like(maxima))


def splits_of(
    pairs: int, device: torch.device, a_multiprocessor: int = PROGRAMS_PER_MULTIPROCESSOR
) -> int:
    """Return how many splits over the keys give each multiprocessor ``a_multiprocessor``
    programs.
    """
    wanted = a_multiprocessor * num_multiprocessors(device)
    return max(1, min(MAX_SPLITS, wanted // pairs))


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors ``device`` has, 8 where it is no GPU."""
    if device.type != "cuda":
        return 8  # the interpreter: enough that the tests' batches are split
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit  # type: ignore[untyped-decorator]
def division(start, num_splits, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return how the cached keys below position ``start`` are divided.

    Returns the first key, the keys a split, and the split that has the new rows too. That is an
    idle one if there is one.
    """
    first = start * 0
    if WINDOW > 0:
        first = tl.maximum(start - WINDOW + 1, 0)
    blocks = tl.cdiv(start - first, BLOCK_N)
    blocks_a_split = tl.cdiv(blocks, num_splits)
    num_used = tl.cdiv(blocks, tl.maximum(blocks_a_split, 1))
    return first, blocks_a_split * BLOCK_N, tl.minimum(num_used, num_splits - 1)


@triton.jit
def merged_parts(parts, maxima, sums):
    """Return one row ``[C]`` of attention from its splits' ``parts [N, C]``, ``maxima [N]`` and
    ``sums [N]``. A split that is not there has -inf, 0 and 0."""
    weights = tl.exp2(maxima - tl.max(maxima, 0))
    return tl.sum(parts * weights[:, None], 0) / tl.sum(sums * weights, 0)


@triton.jit(do_not_specialize=["num_splits"])  # type: ignore[untyped-decorator]
def _merge_kernel(
    partial_out,
    partial_max,
    partial_sum,
    positions,
    out,
    num_splits,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        # The next kernel is a product, which asks for its weights meanwhile.
        gdc_launch_dependents()
    b = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    m = tl.program_id(1)
    # Written at the forward's start, not by the kernel ahead: see ``kernels.gpu``.
    start = tl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(tl.int32)
    split = tl.arange(0, SPLITS)
    used = split <= division(start, num_splits, WINDOW, BLOCK_N)[2]
    if EARLY:
        gdc_wait()
    dv = tl.arange(0, BLOCK_DV)
    row = (tl.program_id(0) * num_splits + split) * (GROUP * QUERY_LEN) + m
    maxima = tl.load(partial_max + row, mask=used, other=float("-inf"))
    sums = tl.load(partial_sum + row, mask=used, other=0.0)
    parts = tl.load(
        partial_out + row[:, None] * VALUE_DIM + dv[None, :],
        mask=used[:, None] & (dv < VALUE_DIM)[None, :],
        other=0.0,
    )
    merged = merged_parts(parts, maxima, sums)
    head = kv_head * GROUP + m // QUERY_LEN
    out_row = (b * QUERY_LEN + m % QUERY_LEN) * (KV_HEADS * GROUP) + head
    tl.store(out + out_row * VALUE_DIM + dv, merged.to(out.dtype.element_ty), mask=dv < VALUE_DIM)


def merge(parts: Parts, positions: Tensor, out: Tensor, shape: Mapping[str, int]) -> None:
    """Fill ``out [B, S, Hq, Dv]`` from all splits' ``parts``.

    ``shape`` is the constants that the splits were made with.
    """
    pairs, num_splits, num_rows = parts.maxima.shape
    splits = triton.next_power_of_2(num_splits)
    _merge_kernel[(pairs, num_rows)](
        *parts,
        positions,
        out,
        num_splits,
        SPLITS=splits,
        EARLY=early(out.device),
        num_warps=_merging_warps(splits * shape["BLOCK_DV"]),
        **launch_keywords(out.device),
        **shape,
    )


def _merging_warps(num_elements: int) -> int:
    """Return as few warps as hold a row of all splits in their registers.

    More would only wait for each other.
    """
    return min(4, max(1, num_elements // ELEMENTS_A_WARP))
