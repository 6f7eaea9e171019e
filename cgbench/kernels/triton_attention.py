"""Attend with 1 to 17 query rows a request by split-KV attention, in Triton.

Decode attention is bound by the bytes of live keys and values. So each program reads one KV head's
keys once, for the whole GQA group and all query rows (packed in one tile). If a tile cannot hold
them, a few programs share the group. The keys are split over programs until the device is full.
Nothing past a request's live length is read. That also keeps what lies there, NaN included, out of
the result.

The new rows that a call brings are read from its own tensors. One program each writes them to the
cache on the way, so no program waits for another. That program also begins its softmax with the
head's sink, if there is one. A second kernel merges the splits (``triton_splits``).

FP8 keys and values come to the products in float16, without their scales (``fp8.triton_kv``).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.attention import AttentionInput, LayerKv
from cgbench.kernels.fp8.triton_kv import (
    BY_TENSOR,
    BY_TOKEN,
    FLOAT16_SHIFT,
    UNSCALED,
    in_float16,
    keys_in,
    parts_of_scale,
    quantised_tile,
    rows_scale,
    scales_of_keys,
    values_in,
)
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.triton_splits import (
    PROGRAMS_PER_MULTIPROCESSOR,
    Parts,
    division,
    merge,
    splits_of,
)

# tl.dot wants at least 16 rows.
MIN_TILE = 16
# Float32 sums of a tile, 128 for each thread of 4 warps.
MAX_SUMS = 128 * 128
# Programs that convert FP8 values wait more than they read. So more of them share a multiprocessor.
FP8_PROGRAMS = 4
LOG2_E = 1.4426950408889634
_LOG2_E = tl.constexpr(LOG2_E)

# These sizes differ between buckets. Specialising on them would compile the kernels anew for some.
SIZES = ["num_splits", "room"]


@triton.jit  # type: ignore[untyped-decorator]
def _attended(
    acc,
    running_max,
    running_sum,
    q,
    k,
    v,
    key_scale,
    value_scale,
    seen,
    scaling_log2,
    BY_TOKEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the running softmax after one more tile of keys ``k [D, N]`` and values
    ``v [N, Dv]``.

    If ``BY_TOKEN``, keys and values are to be multiplied by ``key_scale [N]`` and
    ``value_scale [N]``. The float32 scores and weights are multiplied instead.
    """
    scores = tl.dot(q, k, input_precision=PRECISION) * scaling_log2
    if BY_TOKEN:
        scores *= key_scale[None, :]
    scores = tl.where(seen, scores, float("-inf"))
    if BY_TOKEN:
        # The maximum is of weights times powers of two, so that float16 holds their products.
        power, inverse, rest = parts_of_scale(value_scale)
        scores += power[None, :]
    new_max = tl.maximum(running_max, tl.max(scores, 1))
    # A row that has seen no key yet keeps -inf. Then 0 stands in, to keep NaN out.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    p = tl.exp2(scores - shift[:, None])
    weights = p
    if BY_TOKEN:
        weights = p * rest[None, :]
        p *= inverse[None, :]
    decay = tl.exp2(running_max - shift)
    acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return acc, new_max, running_sum * decay + tl.sum(p, 1)


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]
def _split_kernel(
    query,
    key,
    value,
    key_cache,
    value_cache,
    key_scales,
    value_scales,
    slots,
    positions,
    out,
    partial_out,
    partial_max,
    partial_sum,
    sinks,
    scaling_log2,
    room,
    num_splits,
    query_stride_b,
    query_stride_h,
    query_stride_s,
    key_stride_b,
    key_stride_h,
    key_stride_s,
    value_stride_b,
    value_stride_h,
    value_stride_s,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SHARING: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    CAUSAL: tl.constexpr,
    SCALING: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    # A KV head counts once for each of the SHARING programs that divide its group.
    b = tl.program_id(0) // KV_HEADS
    part = tl.program_id(0) % KV_HEADS
    kv_head = part // SHARING
    STORED_HEADS: tl.constexpr = KV_HEADS // SHARING
    split = tl.program_id(1)
    # Places were not written by the kernel ahead: see ``kernels.gpu``.
    start = tl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(tl.int32)
    slot = tl.load(slots + b, cache_modifier=".cg").to(tl.int64)
    slot_row = slot * room
    scale_row = (slot * STORED_HEADS + kv_head) * room
    first, keys_a_split, split_of_new = division(start, num_splits, WINDOW, BLOCK_N)
    low = first + split * keys_a_split
    high = tl.minimum(low + keys_a_split, start)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()

    # Tile row m is query row m % QUERY_LEN of the group's head m // QUERY_LEN.
    m = tl.arange(0, BLOCK_M)
    in_tile = m < GROUP * QUERY_LEN
    head = part * GROUP + m // QUERY_LEN
    s = m % QUERY_LEN
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    in_key = d < KEY_DIM
    in_value = dv < VALUE_DIM
    q = tl.load(
        query
        + b * query_stride_b
        + head[:, None] * query_stride_h
        + s[:, None] * query_stride_s
        + d[None, :],
        mask=in_tile[:, None] & in_key[None, :],
        other=0.0,
    )
    if SCALING == BY_TENSOR:
        scaling_log2 *= tl.load(key_scales)
    if SCALING and q.dtype == tl.bfloat16:
        q, undone = in_float16(q)
        scaling_log2 = (scaling_log2 * undone)[:, None]
    running_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_M], tl.float32)
    SINK_SHIFT: tl.constexpr = FLOAT16_SHIFT if SCALING else 0
    if HAS_SINKS:
        if split == split_of_new:
            # A key without a value, once over all splits: its score is the first maximum.
            sink = tl.load(sinks + head, mask=in_tile, other=0.0).to(tl.float32)
            running_max = sink * _LOG2_E - SINK_SHIFT
            running_sum += 2.0**SINK_SHIFT
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for n0 in range(low, high, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        live = n < high
        row = (slot_row + n) * STORED_HEADS + kv_head
        k = tl.load(
            key_cache + row[None, :] * KEY_DIM + d[:, None],
            mask=live[None, :] & in_key[:, None],
            other=0.0,
        )
        v = tl.load(
            value_cache + row[:, None] * VALUE_DIM + dv[None, :],
            mask=live[:, None] & in_value[None, :],
            other=0.0,
        )
        key_scale = scales_of_keys(key_scales + scale_row + n, live, SCALING)
        value_scale = scales_of_keys(value_scales + scale_row + n, live, SCALING)
        seen = live[None, :]
        if WINDOW > 0:
            seen = seen & (n[None, :] > start + s[:, None] - WINDOW)
        acc, running_max, running_sum = _attended(
            acc,
            running_max,
            running_sum,
            q,
            keys_in(k, q.dtype) if SCALING else k,
            values_in(v, q.dtype) if SCALING else v,
            key_scale,
            value_scale,
            seen,
            scaling_log2,
            SCALING == BY_TOKEN,
            PRECISION,
        )

    if split == split_of_new:
        # The new rows come from the call, and go to the cache on the way.
        n = tl.arange(0, BLOCK_S)
        live = n < QUERY_LEN
        row = (slot_row + start + n) * STORED_HEADS + kv_head
        is_writer = part % SHARING == 0
        from_key = key + b * key_stride_b + kv_head * key_stride_h + n[None, :] * key_stride_s
        keep = live[None, :] & in_key[:, None]
        k = tl.load(from_key + d[:, None], mask=keep, other=0.0)
        key_scale = scales_of_keys(key_scales, live, UNSCALED)
        value_scale = key_scale
        if SCALING:
            key_scale = rows_scale(k, key_scales, 0, SCALING)
            k = quantised_tile(k, key_scale[None, :])
        tl.store(key_cache + row[None, :] * KEY_DIM + d[:, None], k, mask=keep & is_writer)
        from_value = value + b * value_stride_b + kv_head * value_stride_h
        keep = live[:, None] & in_value[None, :]
        v = tl.load(from_value + n[:, None] * value_stride_s + dv[None, :], mask=keep, other=0.0)
        if SCALING:
            value_scale = rows_scale(v, value_scales, 1, SCALING)
            v = quantised_tile(v, value_scale[:, None])
        if SCALING == BY_TOKEN:
            to_scale = scale_row + start + n
            tl.store(key_scales + to_scale, key_scale, mask=live & is_writer)
            tl.store(value_scales + to_scale, value_scale, mask=live & is_writer)
        tl.store(value_cache + row[:, None] * VALUE_DIM + dv[None, :], v, mask=keep & is_writer)
        seen = live[None, :]
        if CAUSAL:
            seen = seen & (n[None, :] <= s[:, None])
        if WINDOW > 0:
            seen = seen & (n[None, :] > s[:, None] - WINDOW)
        acc, running_max, running_sum = _attended(
            acc,
            running_max,
            running_sum,
            q,
            keys_in(k, q.dtype) if SCALING else k,
            values_in(v, q.dtype) if SCALING else v,
            key_scale,
            value_scale,
            seen,
            scaling_log2,
            SCALING == BY_TOKEN,
            PRECISION,
        )

    if SCALING == BY_TENSOR:
        acc *= tl.load(value_scales)
    if IS_WHOLE:
        whole_row = (b * QUERY_LEN + s) * (KV_HEADS * GROUP) + head
        tl.store(
            out + whole_row[:, None] * VALUE_DIM + dv[None, :],
            (acc / running_sum[:, None]).to(out.dtype.element_ty),
            mask=in_tile[:, None] & in_value[None, :],
        )
        return
    out_row = (tl.program_id(0) * num_splits + split) * (GROUP * QUERY_LEN) + m
    tl.store(partial_max + out_row, running_max, mask=in_tile)
    tl.store(partial_sum + out_row, running_sum, mask=in_tile)
    tl.store(
        partial_out + out_row[:, None] * VALUE_DIM + dv[None, :],
        acc,
        mask=in_tile[:, None] & in_value[None, :],
    )


class KeyTile(NamedTuple):
    """A key tile is how a program reads keys.

    It reads ``num_keys`` at a time, by ``num_warps`` warps, with ``num_stages`` tiles under way.
    """

    num_keys: int
    num_warps: int
    num_stages: int


def key_tile(block_m: int, *, is_float32: bool, is_fp8: bool = False) -> KeyTile:
    """Return the best tile of those tried on an H200, or one within 3 % of it.

    That holds at every batch size and context of results/h200/attention-tiles.md. The tiles are
    small, so that three or more programs fit on a multiprocessor. Then 64 requests are read in one
    round. With two programs on each they would take two rounds.

    A tile of FP8 keys has half the bytes, and each step waits for its conversions. So it is twice
    as long, with fewer tiles under way (results/tried.md).
    """
    if is_fp8 and not is_float32:
        return KeyTile(64 if block_m <= 64 else 32, 2 if block_m <= MIN_TILE else 4, 2)
    if is_float32:
        # The numbers are twice as large.
        return KeyTile(32, 4, 3)
    return KeyTile(32, 2 if block_m <= MIN_TILE else 4, 4)


def sharing_of(group: int, query_len: int, value_dim: int) -> int:
    """Return how many programs divide a GQA ``group``, so that a tile's sums fit in registers."""
    width = triton.next_power_of_2(value_dim)
    for sharing in range(1, group):
        rows = group // sharing * query_len
        if group % sharing == 0 and triton.next_power_of_2(rows) * width <= MAX_SUMS:
            return sharing
    return group


def _scaling_of(kv: LayerKv) -> tl.constexpr:
    if kv.scales is None:
        return UNSCALED
    return BY_TOKEN if kv.scales.are_by_token else BY_TENSOR


def decode(
    kv: LayerKv,
    qkv: AttentionInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    tile: KeyTile | None = None,
) -> Tensor:
    """Store the new rows in the cache, and attend over each slot's rows 0..position.

    Without ``qkv.is_causal`` every query sees all of the new rows. Returns ``[B, S, Hq, Dv]``.
    ``slots [B]`` have ``room`` rows each, and the queries are at ``positions [B, S]``. If ``tile``
    is None, ``key_tile`` chooses it.
    """
    query, key, value = qkv.query, qkv.key, qkv.value
    batch, num_heads, query_len, key_dim = query.shape
    kv_heads, value_dim = kv.values.shape[1:]
    sharing = sharing_of(num_heads // kv_heads, query_len, value_dim)
    kv_heads *= sharing
    group = num_heads // kv_heads
    assert query.stride(3) == key.stride(3) == value.stride(3) == 1
    assert positions.is_contiguous()
    out = torch.empty(
        (batch, query_len, num_heads, value_dim), dtype=query.dtype, device=query.device
    )
    is_fp8 = kv.scales is not None
    a_multiprocessor = FP8_PROGRAMS if is_fp8 else PROGRAMS_PER_MULTIPROCESSOR
    num_splits = splits_of(batch * kv_heads, query.device, a_multiprocessor)
    parts = Parts.empty(batch * kv_heads, num_splits, group * query_len, value_dim, query.device)
    is_float32 = query.dtype == torch.float32
    block_m = max(MIN_TILE, triton.next_power_of_2(group * query_len))
    tile = tile or key_tile(block_m, is_float32=is_float32, is_fp8=is_fp8)
    shape = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "QUERY_LEN": query_len,
        "VALUE_DIM": value_dim,
        "WINDOW": qkv.sliding_window or 0,
        "BLOCK_N": tile.num_keys,
        "BLOCK_DV": max(MIN_TILE, triton.next_power_of_2(value_dim)),
    }
    _split_kernel[(batch * kv_heads, num_splits)](
        query,
        key,
        value,
        kv.keys,
        kv.values,
        *((query, query) if kv.scales is None else kv.scales),
        slots,
        positions,
        out,
        *parts,
        query if qkv.sinks is None else qkv.sinks,
        qkv.scaling * LOG2_E,
        room,
        num_splits,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        SHARING=sharing,
        KEY_DIM=key_dim,
        BLOCK_M=block_m,
        BLOCK_S=max(MIN_TILE, triton.next_power_of_2(query_len)),
        BLOCK_D=max(MIN_TILE, triton.next_power_of_2(key_dim)),
        PRECISION="ieee" if is_float32 else "tf32",
        IS_WHOLE=num_splits == 1,
        HAS_SINKS=qkv.sinks is not None,
        CAUSAL=qkv.is_causal,
        SCALING=_scaling_of(kv),
        EARLY=early(query.device),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_keywords(query.device),
        **shape,
    )
    if num_splits > 1:
        merge(parts, positions, out, shape)
    return out
