"""Compute decode attention over latents in Triton, for 1 to 17 query rows a request.

Every head reads the same latents, so heads and queries together are the rows of a tile. A program
takes 64 of them. It loads a tile of latents into shared memory once, and multiplies it as keys and
then as values: that reuse is what the absorbed form gains. The keys
are split over programs until the device is full. Nothing past a request's live length is read.

The rows that a call brings are attended to from its own tensors, and written to the cache on the
way by the programs of the first tile alone. A second kernel merges the splits
(``triton_latent_merge``).
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels import triton_splits
from cgbench.kernels.gpu import HOPPER
from cgbench.kernels.mla import gluon_latent, triton_heads, triton_latent_merge
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.kernels.mla.latent_launch import latent_launch
from cgbench.kernels.triton_splits import Parts, division

# tl.dot wants at least 16 rows.
MIN_TILE = 16
MAX_ROWS = 64
MAX_SWAPPED_ROWS = 32
MAX_SPLITS = 128
HOPPERS_SHARED_BYTES = 232_448

# Sizes that differ between buckets: specialising on them would compile the kernel anew for some.
SIZES = ["num_splits", "room"]


@triton.jit  # type: ignore[untyped-decorator]
def _attended(
    acc,
    running_max,
    running_sum,
    q,
    q_rotary,
    latent,
    rotary,
    seen,
    scale,
    SWAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the running softmax after one more tile: ``latent [N, C]`` is key and value, ``rotary
    [N, R]`` the rest of the key. ``seen [M or 1, N]``. ``acc [M, C]``, or swapped ``[C, M]``."""
    if SWAPPED:
        scores = tl.dot(latent, tl.trans(q), input_precision=PRECISION)
        scores = tl.dot(rotary, tl.trans(q_rotary), scores, input_precision=PRECISION) * scale
        scores = tl.where(tl.trans(seen), scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 0))
    else:
        scores = tl.dot(q, tl.trans(latent), input_precision=PRECISION)
        scores = tl.dot(q_rotary, tl.trans(rotary), scores, input_precision=PRECISION) * scale
        scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
    # A row that has seen no key yet keeps -inf; 0 stands in, to keep NaN out.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    decay = tl.exp2(running_max - shift)
    if SWAPPED:
        p = tl.exp2(scores - shift[None, :])
        acc *= decay[None, :]
        acc = tl.dot(tl.trans(latent), p.to(latent.dtype), acc, input_precision=PRECISION)
        total = tl.sum(p, 0)
    else:
        p = tl.exp2(scores - shift[:, None])
        acc *= decay[:, None]
        acc = tl.dot(p.to(latent.dtype), latent, acc, input_precision=PRECISION)
        total = tl.sum(p, 1)
    return acc, new_max, running_sum * decay + total


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]
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
    TILES: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    RANK: tl.constexpr,
    ROTARY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SWAPPED: tl.constexpr,
    PAIRED: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    b = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES
    split = tl.program_id(1)
    # Places were not written by the kernel ahead: see ``kernels.gpu``.
    start = tl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(tl.int32)
    slot_row = tl.load(slots + b, cache_modifier=".cg").to(tl.int64) * room
    first, keys_a_split, split_of_new = division(start, num_splits, 0, BLOCK_N)
    low = first + split * keys_a_split
    high = tl.minimum(low + keys_a_split, start)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    if split > split_of_new:
        return

    # Row m of a request is query row m % QUERY_LEN of head m // QUERY_LEN.
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_tile = m < NUM_ROWS
    s = m % QUERY_LEN
    c = tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    in_rank = c < RANK
    in_rotary = r < ROTARY
    row = b * NUM_ROWS + m
    q = tl.load(
        absorbed + row[:, None] * RANK + c[None, :],
        mask=in_tile[:, None] & in_rank[None, :],
        other=0.0,
    )
    of_query = b * query_stride_b + (m // QUERY_LEN) * query_stride_h + s * query_stride_s
    keep_query = in_tile[:, None] & in_rotary[None, :]
    if PAIRED:
        # Not rotated yet: see ``latent_rows``.
        j = r % (ROTARY // 2)
        is_second = r >= ROTARY // 2
        of_own = (query + of_query)[:, None] + (2 * j + is_second.to(tl.int32))[None, :]
        of_other = (query + of_query)[:, None] + (2 * j + 1 - is_second.to(tl.int32))[None, :]
        own = tl.load(of_own, mask=keep_query, other=0.0).to(tl.float32)
        other = tl.load(of_other, mask=keep_query, other=0.0).to(tl.float32)
        place = b * QUERY_LEN + s
        of_cos = cos + place[:, None] * cos_stride + j[None, :]
        of_sin = sin + place[:, None] * sin_stride + j[None, :]
        along = tl.load(of_cos, mask=keep_query, other=0.0).to(tl.float32)
        across = tl.load(of_sin, mask=keep_query, other=0.0).to(tl.float32)
        rotated = own * along + tl.where(is_second[None, :], other, -other) * across
        q_rotary = rotated.to(q.dtype)
    else:
        q_rotary = tl.load(query + of_query[:, None] + r[None, :], mask=keep_query, other=0.0)
    running_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_M], tl.float32)
    if SWAPPED:
        acc = tl.zeros([BLOCK_C, BLOCK_M], tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for n0 in range(low, high, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        live = n < high
        of_row = cache + (slot_row + n) * (RANK + ROTARY)
        latent = tl.load(
            of_row[:, None] + c[None, :], mask=live[:, None] & in_rank[None, :], other=0.0
        )
        rotary = tl.load(
            of_row[:, None] + RANK + r[None, :],
            mask=live[:, None] & in_rotary[None, :],
            other=0.0,
        )
        acc, running_max, running_sum = _attended(
            acc,
            running_max,
            running_sum,
            q,
            q_rotary,
            latent,
            rotary,
            live[None, :],
            scale,
            SWAPPED,
            PRECISION,
        )

    if split == split_of_new:
        # The new rows come from the call, and go to the cache on the way, once.
        n = tl.arange(0, BLOCK_S)
        live = n < QUERY_LEN
        from_call = new + b * new_stride_b + n * new_stride_s
        to_cache = cache + (slot_row + start + n) * (RANK + ROTARY)
        keep = live[:, None] & in_rank[None, :]
        keep_rotary = live[:, None] & in_rotary[None, :]
        latent = tl.load(from_call[:, None] + c[None, :], mask=keep, other=0.0)
        rotary = tl.load(from_call[:, None] + RANK + r[None, :], mask=keep_rotary, other=0.0)
        if tile == 0:
            tl.store(to_cache[:, None] + c[None, :], latent, mask=keep)
            tl.store(to_cache[:, None] + RANK + r[None, :], rotary, mask=keep_rotary)
        acc, running_max, running_sum = _attended(
            acc,
            running_max,
            running_sum,
            q,
            q_rotary,
            latent,
            rotary,
            live[None, :] & (n[None, :] <= s[:, None]),
            scale,
            SWAPPED,
            PRECISION,
        )

    if SWAPPED:
        acc = tl.trans(acc)
    keep = in_tile[:, None] & in_rank[None, :]
    if IS_WHOLE:
        whole = (acc / running_sum[:, None]).to(out.dtype.element_ty)
        tl.store(out + row[:, None] * RANK + c[None, :], whole, mask=keep)
        return
    out_row = (b * num_splits + split) * NUM_ROWS + m
    tl.store(partial_max + out_row, running_max, mask=in_tile)
    tl.store(partial_sum + out_row, running_sum, mask=in_tile)
    tl.store(partial_out + out_row.to(tl.int64)[:, None] * RANK + c[None, :], acc, mask=keep)


class LatentTile(NamedTuple):
    """A ``LatentTile`` sets the sizes that the attention kernel is compiled for.

    A program takes ``num_rows`` rows of heads and queries, and ``num_keys`` latents at a time, by
    ``num_warps`` warps. ``num_stages`` tiles of latents are under way.

    ``is_swapped``: latents are the left operand of both products, and the rows their columns. A
    tensor core multiplies 64 rows at a time, which few heads and queries do not fill.
    """

    num_rows: int
    num_keys: int
    num_warps: int
    num_stages: int
    is_swapped: bool = False


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Return the bytes of shared memory that a program may have, Hopper's if there is no GPU."""
    if device.type != "cuda":
        return HOPPERS_SHARED_BYTES
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def latent_tile(num_rows: int, device: torch.device, *, is_float32: bool) -> LatentTile:
    """Return the tile for ``num_rows`` rows a request.

    On Hopper ``gluon_latent`` runs instead, where it can.
    """
    if is_float32:
        # Of numbers twice as large.
        return LatentTile(MIN_TILE, 16, 4, 2)
    if shared_bytes(device) < HOPPERS_SHARED_BYTES:
        # 56 kB, which any GPU has that runs bfloat16.
        return LatentTile(MIN_TILE, 32, 8, 2, is_swapped=True)
    if num_rows <= MAX_SWAPPED_ROWS:
        rows = max(MIN_TILE, triton.next_power_of_2(num_rows))
        return LatentTile(rows, 64, 8, 2, is_swapped=True)
    # Of 32 rows the registers spill, and 64 read no more bytes.
    return LatentTile(MAX_ROWS, 64, 8, 2)


def num_splits_of(num_programs: int, num_keys: int, room: int, device: torch.device) -> int:
    """Return the splits over the keys that give every multiprocessor a program or two.

    ``num_keys`` is that of a tile. Two of the smaller ones fit on a multiprocessor. A slot of
    ``room`` rows has no use of more splits than tiles.
    """
    wanted = triton_splits.num_multiprocessors(device) * (1 if num_keys > 32 else 2)
    num_tiles = int(triton.cdiv(room, num_keys))
    return max(1, min(MAX_SPLITS, wanted // num_programs, num_tiles))


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Return whether ``device`` has the tensor cores that ``gluon_latent`` is written for."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER


def runs_gluon(absorbed: Tensor, new: LatentInput) -> bool:
    """Return whether ``gluon_latent`` computes this attention."""
    sizes = (absorbed.shape[3], new.plain_rotary.shape[3])
    is_known = sizes == (gluon_latent.RANK, gluon_latent.ROTARY)
    return is_known and absorbed.dtype.itemsize == 2 and is_hopper(absorbed.device)


def attend(
    latents: Tensor,
    absorbed: Tensor,
    new: LatentInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    tile: LatentTile | None = None,
) -> Tensor:
    """Store the new latents, and attend over each slot's rows 0..position, to ``[B, H, S, rank]``.

    ``absorbed [B, H, S, rank]``, contiguous, is the query after W_UK. The rest is as in ``decode``.
    """
    batch, num_heads, query_len, _ = absorbed.shape
    num_rows = num_heads * query_len
    assert absorbed.is_contiguous() and latents.is_contiguous() and positions.is_contiguous()
    assert new.query.stride(3) == new.latent.stride(3) == 1
    places = latents, absorbed, new, slots, positions, room
    if tile is None and runs_gluon(absorbed, new):
        rows = gluon_latent.rows_of(num_rows)
        num_programs = batch * triton.cdiv(num_rows, rows.num_rows)
        num_keys = gluon_latent.NUM_KEYS
        num_splits = num_splits_of(num_programs, num_keys, room, absorbed.device)
        whole, parts = gluon_latent.attend(*places, num_splits, rows)
    else:
        is_float32 = absorbed.dtype == torch.float32
        tile = tile or latent_tile(num_rows, absorbed.device, is_float32=is_float32)
        num_programs = batch * triton.cdiv(num_rows, tile.num_rows)
        num_keys = tile.num_keys
        num_splits = num_splits_of(num_programs, num_keys, room, absorbed.device)
        whole, parts = _attend_by_triton(*places, num_splits, tile)
    if num_splits == 1:
        return whole
    merged = triton_latent_merge.merge(parts, positions, num_keys, absorbed.dtype)
    return merged.view_as(absorbed)


def _attend_by_triton(
    latents: Tensor,
    absorbed: Tensor,
    new: LatentInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    num_splits: int,
    tile: LatentTile,
) -> tuple[Tensor, Parts]:
    batch, num_heads, query_len, rank = absorbed.shape
    num_tiles = triton.cdiv(num_heads * query_len, tile.num_rows)
    launch = latent_launch(latents, absorbed, new, slots, positions, room, num_splits)
    _split_kernel[(batch * num_tiles, num_splits)](
        *launch.arguments,
        TILES=num_tiles,
        BLOCK_M=tile.num_rows,
        BLOCK_N=tile.num_keys,
        BLOCK_S=max(MIN_TILE, triton.next_power_of_2(query_len)),
        BLOCK_C=max(MIN_TILE, triton.next_power_of_2(rank)),
        BLOCK_R=max(MIN_TILE, triton.next_power_of_2(new.plain_rotary.shape[3])),
        SWAPPED=tile.is_swapped,
        PRECISION="ieee" if absorbed.dtype == torch.float32 else "tf32",
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch.keywords,
    )
    return launch.whole, launch.parts


def decode(
    latents: Tensor,
    new: LatentInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    tile: LatentTile | None = None,
) -> Tensor:
    """Store the new latents, and attend over each slot's rows 0..position.

    It does what ``latent_attention.decode`` does, to ``[B, S, H, value_size]``. If ``tile`` is
    None, ``latent_tile`` chooses one.
    """
    absorbed = triton_heads.absorb(new.no_rotary, new.weights)
    attended = attend(latents, absorbed, new, slots, positions, room, tile)
    return triton_heads.project(attended, new.weights)
