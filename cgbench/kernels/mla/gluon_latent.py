"""Compute decode attention over latents on Hopper, in Gluon: what ``triton_latent`` does, faster.

Triton begins a tile's loads behind the products of the tile before, and has every warpgroup compute
all scores. Here two tiles of latents are in shared memory. While one is multiplied, the other
arrives. Each warpgroup computes the scores of half the tile, and keeps half of what attention
returns. The next tile's scores begin before this tile's values have been summed, so that the tensor
cores are idle only during the softmax.

Gluon has no interpreter. ``triton_latent`` computes the same from the same division of keys. It is
what other GPUs and other sizes run, and what the tests on a CPU check.
"""

from typing import NamedTuple

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.mla.gluon_latent_tiles import ask_for_tile, begin_scores, weigh
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.kernels.mla.latent_launch import latent_launch
from cgbench.kernels.triton_splits import Parts, division

NUM_KEYS = 64
"""Latents of a tile: as many as a tensor core's left operand has rows."""
NUM_WARPS = 8
SWAPPED_WARPS = 4
MAX_ROWS = 64
MIN_ROWS = 16
MAX_SWAPPED_ROWS = 32
RANK = 512
ROTARY = 64
"""Two tiles of these sizes, and 64 rows, fill a multiprocessor's shared memory."""

# Triton 3.7 has another name for it.
barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier

SIZES = ["num_splits", "room"]


@gluon.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]
def _split_kernel(
    absorbed,
    query,
    new,
    cache,
    slots,
    positions,
    out,
    partial_out,
    partial_max,
    partial_sum,
    cos,
    sin,
    scale,
    room,
    num_splits,
    cos_stride,
    sin_stride,
    query_stride_b,
    query_stride_h,
    query_stride_s,
    new_stride_b,
    new_stride_s,
    TILES: gl.constexpr,
    NUM_ROWS: gl.constexpr,
    QUERY_LEN: gl.constexpr,
    RANK: gl.constexpr,
    ROTARY: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_S: gl.constexpr,
    SWAPPED: gl.constexpr,
    PAIRED: gl.constexpr,
    IS_WHOLE: gl.constexpr,
    EARLY: gl.constexpr,
    WARPS: gl.constexpr,
) -> None:
    TYPE: gl.constexpr = cache.dtype.element_ty
    # A product of 64 keys or rows: one warpgroup has its first half of columns, one the second.
    COLUMNS: gl.constexpr = BLOCK_M if SWAPPED else BLOCK_N
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [4, WARPS // 4], [16, COLUMNS // (WARPS // 4), 16]
    )
    OF_LATENTS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_M, 16])
    OF_ROWS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, 256, 16])
    SUM: gl.constexpr = OF_LATENTS if SWAPPED else OF_ROWS
    ROWS: gl.constexpr = 1 if SWAPPED else 0
    OF_SCORES: gl.constexpr = gl.SliceLayout(1 - ROWS, SCORES)
    OF_SUM: gl.constexpr = gl.SliceLayout(1 - ROWS, SUM)

    b = gl.program_id(0) // TILES
    tile = gl.program_id(0) % TILES
    split = gl.program_id(1)
    # Places were not written by the kernel ahead: see ``kernels.gpu``.
    start = gl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(gl.int32)
    slot_row = gl.load(slots + b, cache_modifier=".cg").to(gl.int64) * room
    first, keys_a_split, split_of_new = division(start, num_splits, 0, BLOCK_N)
    low = first + split * keys_a_split
    num_keys = gl.maximum(gl.minimum(low + keys_a_split, start) - low, 0)
    num_cached = (num_keys + BLOCK_N - 1) // BLOCK_N
    num_tiles = num_cached + (split == split_of_new).to(gl.int32)

    latents = gl.allocate_shared_memory(
        TYPE, [2, BLOCK_N, RANK], gl.NVMMASharedLayout.get_default_for([BLOCK_N, RANK], TYPE)
    )
    rotaries = gl.allocate_shared_memory(
        TYPE, [2, BLOCK_N, ROTARY], gl.NVMMASharedLayout.get_default_for([BLOCK_N, ROTARY], TYPE)
    )
    q = gl.allocate_shared_memory(
        TYPE, [BLOCK_M, RANK], gl.NVMMASharedLayout.get_default_for([BLOCK_M, RANK], TYPE)
    )
    q_rotary = gl.allocate_shared_memory(
        TYPE, [BLOCK_M, ROTARY], gl.NVMMASharedLayout.get_default_for([BLOCK_M, ROTARY], TYPE)
    )
    if SWAPPED:
        p = gl.allocate_shared_memory(
            TYPE, [BLOCK_N, BLOCK_M], gl.NVMMASharedLayout.get_default_for([BLOCK_N, BLOCK_M], TYPE)
        )
    else:
        p = gl.allocate_shared_memory(
            TYPE, [BLOCK_M, BLOCK_N], gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_N], TYPE)
        )

    cached_rows = cache + (slot_row + low) * (RANK + ROTARY)
    new_rows = new + b * new_stride_b
    # Cached rows were written by an earlier forward.
    for early_tile in gl.static_range(2):
        if early_tile < num_cached:
            ask_for_tile(
                gl.to_tensor(early_tile),
                num_cached,
                cached_rows,
                new_rows,
                new_stride_s,
                num_keys,
                latents,
                rotaries,
                QUERY_LEN,
                BLOCK_N,
                RANK,
                ROTARY,
                WARPS,
            )
        async_copy.commit_group()
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    if split > split_of_new:
        return
    if (num_cached < 2) & (num_cached < num_tiles):
        ask_for_tile(
            num_cached,
            num_cached,
            cached_rows,
            new_rows,
            new_stride_s,
            num_keys,
            latents,
            rotaries,
            QUERY_LEN,
            BLOCK_N,
            RANK,
            ROTARY,
            WARPS,
        )
    async_copy.commit_group()

    # Row m of a request is query row m % QUERY_LEN of head m // QUERY_LEN.
    loaded: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [WARPS, 1], [1, 0])
    m = tile * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(1, loaded))
    c = gl.arange(0, RANK, gl.SliceLayout(0, loaded))
    row = b * NUM_ROWS + m
    q.store(
        gl.load(
            absorbed + row[:, None] * RANK + c[None, :],
            mask=(m < NUM_ROWS)[:, None] & (c < RANK)[None, :],
            other=0.0,
        )
    )
    narrow: gl.constexpr = gl.BlockedLayout([1, 2], [1, 32], [WARPS, 1], [1, 0])
    m = tile * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(1, narrow))
    r = gl.arange(0, ROTARY, gl.SliceLayout(0, narrow))
    s = m % QUERY_LEN
    keep_query = (m < NUM_ROWS)[:, None] & (r < ROTARY)[None, :]
    of_query = b * query_stride_b + (m // QUERY_LEN) * query_stride_h + s * query_stride_s
    if PAIRED:
        # Not rotated yet: see ``latent_rows``.
        j = r % (ROTARY // 2)
        is_second = r >= ROTARY // 2
        of_own = (query + of_query)[:, None] + (2 * j + is_second.to(gl.int32))[None, :]
        of_other = (query + of_query)[:, None] + (2 * j + 1 - is_second.to(gl.int32))[None, :]
        own = gl.load(of_own, mask=keep_query, other=0.0).to(gl.float32)
        other = gl.load(of_other, mask=keep_query, other=0.0).to(gl.float32)
        place = b * QUERY_LEN + s
        of_cos = cos + place[:, None] * cos_stride + j[None, :]
        of_sin = sin + place[:, None] * sin_stride + j[None, :]
        along = gl.load(of_cos, mask=keep_query, other=0.0).to(gl.float32)
        across = gl.load(of_sin, mask=keep_query, other=0.0).to(gl.float32)
        rotated = own * along + gl.where(is_second[None, :], other, -other) * across
        q_rotary.store(rotated.to(TYPE))
    else:
        q_rotary.store(gl.load(query + of_query[:, None] + r[None, :], mask=keep_query, other=0.0))
    if split == split_of_new:
        if tile == 0:
            # The new rows go to the cache on the way, once.
            n = gl.arange(0, BLOCK_S, gl.SliceLayout(1, loaded))
            from_call = (new_rows + n * new_stride_s)[:, None]
            to_cache = (cache + (slot_row + start + n) * (RANK + ROTARY))[:, None]
            keep = (n < QUERY_LEN)[:, None] & (c < RANK)[None, :]
            moved = gl.load(from_call + c[None, :], mask=keep, other=0.0)
            gl.store(to_cache + c[None, :], moved, mask=keep)
            n = gl.arange(0, BLOCK_S, gl.SliceLayout(1, narrow))
            from_call = (new_rows + n * new_stride_s)[:, None]
            to_cache = (cache + (slot_row + start + n) * (RANK + ROTARY))[:, None]
            keep = (n < QUERY_LEN)[:, None] & (r < ROTARY)[None, :]
            moved = gl.load(from_call + RANK + r[None, :], mask=keep, other=0.0)
            gl.store(to_cache + RANK + r[None, :], moved, mask=keep)

    of_tile = tile * BLOCK_M + gl.arange(0, BLOCK_M, OF_SCORES)
    running_max = gl.full([BLOCK_M], float("-inf"), gl.float32, OF_SCORES)
    if SWAPPED:
        zeros = gl.zeros([BLOCK_N, BLOCK_M], gl.float32, SCORES)
        acc = gl.zeros([RANK, BLOCK_M], gl.float32, SUM)
    else:
        zeros = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, SCORES)
        acc = gl.zeros([BLOCK_M, RANK], gl.float32, SUM)
    sums = zeros
    if num_cached > 0:
        async_copy.wait_group(2)
    else:
        async_copy.wait_group(0)
    fence_async_shared()
    barrier()
    scores = warpgroup_mma_wait(
        0, deps=[begin_scores(q, q_rotary, latents.index(0), rotaries.index(0), zeros, SWAPPED)]
    )
    for j in range(num_tiles - 1):
        running_max, sums, decay = weigh(
            scores,
            j,
            num_cached,
            num_keys,
            running_max,
            sums,
            scale,
            p,
            QUERY_LEN,
            BLOCK_N,
            SCORES,
            of_tile,
            SWAPPED,
        )
        # Of the next tile, and of the weights.
        async_copy.wait_group(0)
        fence_async_shared()
        barrier()
        decay = gl.convert_layout(decay, OF_SUM)
        latent = latents.index(j % 2)
        if SWAPPED:
            acc = acc * decay[None, :]
            token = warpgroup_mma(latent.permute((1, 0)), p, acc, is_async=True)
        else:
            acc = acc * decay[:, None]
            token = warpgroup_mma(p, latent, acc, is_async=True)
        following = (j + 1) % 2
        scores_token = begin_scores(
            q, q_rotary, latents.index(following), rotaries.index(following), zeros, SWAPPED
        )
        acc = warpgroup_mma_wait(2, deps=[token])
        barrier()
        if j + 2 < num_tiles:
            ask_for_tile(
                j + 2,
                num_cached,
                cached_rows,
                new_rows,
                new_stride_s,
                num_keys,
                latents,
                rotaries,
                QUERY_LEN,
                BLOCK_N,
                RANK,
                ROTARY,
                WARPS,
            )
        async_copy.commit_group()
        scores = warpgroup_mma_wait(0, deps=[scores_token])

    last_tile = num_tiles - 1
    running_max, sums, decay = weigh(
        scores,
        last_tile,
        num_cached,
        num_keys,
        running_max,
        sums,
        scale,
        p,
        QUERY_LEN,
        BLOCK_N,
        SCORES,
        of_tile,
        SWAPPED,
    )
    fence_async_shared()
    barrier()
    decay = gl.convert_layout(decay, OF_SUM)
    latent = latents.index(last_tile % 2)
    if SWAPPED:
        token = warpgroup_mma(latent.permute((1, 0)), p, acc * decay[None, :], is_async=True)
    else:
        token = warpgroup_mma(p, latent, acc * decay[:, None], is_async=True)
    running_sum = gl.sum(sums, 1 - ROWS)
    acc = warpgroup_mma_wait(0, deps=[token])

    m = tile * BLOCK_M + gl.arange(0, BLOCK_M, OF_SUM)
    c = gl.arange(0, RANK, gl.SliceLayout(ROWS, SUM))
    in_tile = m < NUM_ROWS
    if IS_WHOLE:
        total = gl.convert_layout(running_sum, OF_SUM)
        row = (b * NUM_ROWS + m) * RANK
        if SWAPPED:
            whole = (acc / total[None, :]).to(out.dtype.element_ty)
            gl.store(
                out + c[:, None] + row[None, :], whole, mask=in_tile[None, :] & (c < RANK)[:, None]
            )
        else:
            whole = (acc / total[:, None]).to(out.dtype.element_ty)
            gl.store(
                out + row[:, None] + c[None, :], whole, mask=in_tile[:, None] & (c < RANK)[None, :]
            )
    else:
        first_row = (b * num_splits + split) * NUM_ROWS
        gl.store(partial_max + first_row + of_tile, running_max, mask=of_tile < NUM_ROWS)
        gl.store(partial_sum + first_row + of_tile, running_sum, mask=of_tile < NUM_ROWS)
        row = (first_row + m).to(gl.int64) * RANK
        if SWAPPED:
            gl.store(
                partial_out + c[:, None] + row[None, :],
                acc,
                mask=in_tile[None, :] & (c < RANK)[:, None],
            )
        else:
            gl.store(
                partial_out + row[:, None] + c[None, :],
                acc,
                mask=in_tile[:, None] & (c < RANK)[None, :],
            )


class LatentRows(NamedTuple):
    """A ``LatentRows`` says how many rows of heads and queries a program takes, and on which side.

    ``is_swapped``: latents are the left operand of both products, as in ``LatentTile``. A program
    has ``num_warps`` warps, 4 or 8.
    """

    num_rows: int
    is_swapped: bool
    num_warps: int


def rows_of(num_rows: int) -> LatentRows:
    """Return what a program takes of ``num_rows`` rows a request."""
    if num_rows <= MAX_SWAPPED_ROWS:
        rows = max(MIN_ROWS, triton.next_power_of_2(num_rows))
        return LatentRows(rows, True, SWAPPED_WARPS)
    return LatentRows(MAX_ROWS, False, NUM_WARPS)


def attend(
    latents: Tensor,
    absorbed: Tensor,
    new: LatentInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    num_splits: int,
    rows: LatentRows,
) -> tuple[Tensor, Parts]:
    """Store the new latents, and attend over each slot's rows 0..position.

    Return ``[B, H, S, rank]``, filled if ``num_splits`` is 1, and what the splits leave otherwise.
    """
    batch, num_heads, query_len, _ = absorbed.shape
    num_tiles = triton.cdiv(num_heads * query_len, rows.num_rows)
    launch = latent_launch(latents, absorbed, new, slots, positions, room, num_splits)
    _split_kernel[(batch * num_tiles, num_splits)](
        *launch.arguments,
        TILES=num_tiles,
        BLOCK_M=rows.num_rows,
        BLOCK_N=NUM_KEYS,
        BLOCK_S=max(MIN_ROWS, triton.next_power_of_2(query_len)),
        SWAPPED=rows.is_swapped,
        WARPS=rows.num_warps,
        num_warps=rows.num_warps,
        **launch.keywords,
    )
    return launch.whole, launch.parts
