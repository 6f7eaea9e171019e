"""Split-KV attention for 1 to 9 query rows a request, in Triton.

Decode attention is bound by the bytes of live keys and values. So each program reads one KV
head's keys once for the whole GQA group and all query rows (packed in one tile), the keys are
split over programs until the device is full, and nothing past a request's live length is read,
which also keeps whatever lies there, NaN included, out of the result. A second kernel merges the
splits by their running maxima (the flash-decoding scheme, Dao et al. 2023).
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.engine.attention import Rows
from cgbench.engine.kv import LayerKv
from cgbench.engine.launch import early, launch_keywords
from cgbench.models.attention_hook import AttentionInput

# tl.dot wants at least 16 rows; the merge kernel loads all splits of a row as one tile.
MIN_TILE = 16
MAX_SPLITS = 32
PROGRAMS_PER_MULTIPROCESSOR = 2
LOG2_E = 1.4426950408889634

# Sizes that differ between buckets: specialising on them would compile the kernels anew for some.
SIZES = ["num_splits", "room"]


@triton.jit(do_not_specialize=["room"])  # type: ignore[untyped-decorator]
def _store_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slots,
    positions,
    room,
    key_stride_b,
    key_stride_h,
    key_stride_s,
    value_stride_b,
    value_stride_h,
    value_stride_s,
    query_len,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0)
    b = token // query_len
    s = token % query_len
    row = tl.load(slots + b).to(tl.int64) * room + tl.load(positions + token)
    h = tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    keep = (h < KV_HEADS) & (d < KEY_DIM)
    from_key = key + b * key_stride_b + h * key_stride_h + s * key_stride_s + d
    tl.store(
        key_cache + (row * KV_HEADS + h) * KEY_DIM + d, tl.load(from_key, mask=keep), mask=keep
    )
    dv = tl.arange(0, BLOCK_DV)[None, :]
    keep_v = (h < KV_HEADS) & (dv < VALUE_DIM)
    from_value = value + b * value_stride_b + h * value_stride_h + s * value_stride_s + dv
    tl.store(
        value_cache + (row * KV_HEADS + h) * VALUE_DIM + dv,
        tl.load(from_value, mask=keep_v),
        mask=keep_v,
    )


@triton.jit(do_not_specialize=SIZES)  # type: ignore[untyped-decorator]
def _split_kernel(
    query,
    key_cache,
    value_cache,
    slots,
    positions,
    out,
    partial_out,
    partial_max,
    partial_sum,
    scaling_log2,
    room,
    num_splits,
    query_stride_b,
    query_stride_h,
    query_stride_s,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    b = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(1)
    slot = tl.load(slots + b)
    start = tl.load(positions + b * QUERY_LEN)
    length = start + QUERY_LEN
    first = start * 0
    if WINDOW > 0:
        first = tl.maximum(start - WINDOW + 1, 0)
    blocks_per_split = tl.cdiv(tl.cdiv(length - first, BLOCK_N), num_splits)
    low = first + split * blocks_per_split * BLOCK_N
    high = tl.minimum(low + blocks_per_split * BLOCK_N, length)

    # Tile row m is query row m % QUERY_LEN of the group's head m // QUERY_LEN.
    m = tl.arange(0, BLOCK_M)
    in_tile = m < GROUP * QUERY_LEN
    head = kv_head * GROUP + m // QUERY_LEN
    s = m % QUERY_LEN
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    q = tl.load(
        query
        + b * query_stride_b
        + head[:, None] * query_stride_h
        + s[:, None] * query_stride_s
        + d[None, :],
        mask=in_tile[:, None] & (d < KEY_DIM)[None, :],
        other=0.0,
    )
    running_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    slot_row = slot.to(tl.int64) * room
    for n0 in range(low, high, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        live = n < high
        row = (slot_row + n) * KV_HEADS + kv_head
        k = tl.load(
            key_cache + row[None, :] * KEY_DIM + d[:, None],
            mask=live[None, :] & (d < KEY_DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision=PRECISION) * scaling_log2
        seen = live[None, :] & (n[None, :] <= start + s[:, None])
        if WINDOW > 0:
            seen = seen & (n[None, :] > start + s[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        # A row that has seen no key yet keeps -inf; 0 stands in, to keep NaN out.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        p = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(running_max - shift)
        v = tl.load(
            value_cache + row[:, None] * VALUE_DIM + dv[None, :],
            mask=live[:, None] & (dv < VALUE_DIM)[None, :],
            other=0.0,
        )
        acc = acc * decay[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        running_sum = running_sum * decay + tl.sum(p, 1)
        running_max = new_max

    if IS_WHOLE:
        whole_row = (b * QUERY_LEN + s) * (KV_HEADS * GROUP) + head
        tl.store(
            out + whole_row[:, None] * VALUE_DIM + dv[None, :],
            (acc / running_sum[:, None]).to(out.dtype.element_ty),
            mask=in_tile[:, None] & (dv < VALUE_DIM)[None, :],
        )
        return
    out_row = (tl.program_id(0) * num_splits + split) * (GROUP * QUERY_LEN) + m
    tl.store(partial_max + out_row, running_max, mask=in_tile)
    tl.store(partial_sum + out_row, running_sum, mask=in_tile)
    tl.store(
        partial_out + out_row[:, None] * VALUE_DIM + dv[None, :],
        acc,
        mask=in_tile[:, None] & (dv < VALUE_DIM)[None, :],
    )


@triton.jit(do_not_specialize=["num_splits"])  # type: ignore[untyped-decorator]
def _merge_kernel(
    partial_out,
    partial_max,
    partial_sum,
    out,
    num_splits,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    b = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    m = tl.program_id(1)
    split = tl.arange(0, SPLITS)
    used = split < num_splits
    dv = tl.arange(0, BLOCK_DV)
    row = (tl.program_id(0) * num_splits + split) * (GROUP * QUERY_LEN) + m
    maxima = tl.load(partial_max + row, mask=used, other=float("-inf"))
    sums = tl.load(partial_sum + row, mask=used, other=0.0)
    parts = tl.load(
        partial_out + row[:, None] * VALUE_DIM + dv[None, :],
        mask=used[:, None] & (dv < VALUE_DIM)[None, :],
        other=0.0,
    )
    weights = tl.exp2(maxima - tl.max(maxima, 0))
    merged = tl.sum(parts * weights[:, None], 0) / tl.sum(sums * weights, 0)
    head = kv_head * GROUP + m // QUERY_LEN
    out_row = (b * QUERY_LEN + m % QUERY_LEN) * (KV_HEADS * GROUP) + head
    tl.store(out + out_row * VALUE_DIM + dv, merged.to(out.dtype.element_ty), mask=dv < VALUE_DIM)


def store(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> None:
    """Write keys and values to the rows' places, in one kernel."""
    key, value = qkv.key, qkv.value
    batch, kv_heads, query_len, key_dim = key.shape
    value_dim = value.shape[3]
    assert key.stride(3) == 1 and value.stride(3) == 1 and rows.positions.is_contiguous()
    _store_kernel[(batch * query_len,)](
        key,
        value,
        kv.keys,
        kv.values,
        rows.slots,
        rows.positions,
        rows.cache.room,
        *key.stride()[:3],
        *value.stride()[:3],
        query_len,
        KV_HEADS=kv_heads,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        BLOCK_H=triton.next_power_of_2(kv_heads),
        BLOCK_D=triton.next_power_of_2(key_dim),
        BLOCK_DV=triton.next_power_of_2(value_dim),
        EARLY=early(key.device),
        **launch_keywords(key.device),
    )


def decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
    """The queries over each slot's rows 0..position, to ``[B, S, Hq, Dv]``."""
    query = qkv.query
    batch, num_heads, query_len, key_dim = query.shape
    kv_heads, value_dim = kv.values.shape[1:]
    group = num_heads // kv_heads
    assert query.stride(3) == 1 and rows.positions.is_contiguous()
    num_splits = _num_splits(batch * kv_heads, _num_multiprocessors(query.device))
    # One split is the whole: it goes straight to the output.
    is_whole = num_splits == 1
    out = torch.empty(
        (batch, query_len, num_heads, value_dim), dtype=query.dtype, device=query.device
    )
    partial_shape = (0 if is_whole else batch * kv_heads, num_splits, group * query_len)
    partial_max = torch.empty(partial_shape, dtype=torch.float32, device=query.device)
    partial_sum = torch.empty_like(partial_max)
    partial_out = torch.empty((*partial_shape, value_dim), dtype=torch.float32, device=query.device)
    shape = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "QUERY_LEN": query_len,
        "VALUE_DIM": value_dim,
        "BLOCK_DV": max(MIN_TILE, triton.next_power_of_2(value_dim)),
    }
    is_float32 = query.dtype == torch.float32
    _split_kernel[(batch * kv_heads, num_splits)](
        query,
        kv.keys,
        kv.values,
        rows.slots,
        rows.positions,
        out,
        partial_out,
        partial_max,
        partial_sum,
        qkv.scaling * LOG2_E,
        rows.cache.room,
        num_splits,
        *query.stride()[:3],
        KEY_DIM=key_dim,
        WINDOW=qkv.sliding_window or 0,
        BLOCK_M=max(MIN_TILE, triton.next_power_of_2(group * query_len)),
        # Float32 tiles take twice the shared memory.
        BLOCK_N=32 if is_float32 else 64,
        BLOCK_D=max(MIN_TILE, triton.next_power_of_2(key_dim)),
        PRECISION="ieee" if is_float32 else "tf32",
        IS_WHOLE=is_whole,
        EARLY=early(query.device),
        **launch_keywords(query.device),
        **shape,
    )
    if not is_whole:
        splits = triton.next_power_of_2(num_splits)
        _merge_kernel[(batch * kv_heads, group * query_len)](
            partial_out,
            partial_max,
            partial_sum,
            out,
            num_splits,
            SPLITS=splits,
            EARLY=early(query.device),
            **launch_keywords(query.device),
            **shape,
        )
    return out


def _num_splits(programs: int, multiprocessors: int) -> int:
    """Splits over the keys that give every multiprocessor a few programs."""
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    return max(1, min(MAX_SPLITS, wanted // programs))


@functools.cache
def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # the interpreter: enough to use several splits
    return torch.cuda.get_device_properties(device).multi_processor_count
