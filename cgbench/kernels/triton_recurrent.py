"""Compute what a gated delta net does between its projections in one Triton kernel a layer.

That is the convolution, the gates, the delta rule and the gated norm. Its floor is one read of the
matrices. In torch's operations it is some sixty kernels of a microsecond or two each.

A program has one value head of one request. It reads the head's matrix S once, before the kernel
ahead has ended. The rows' keys and queries are multiplied with S and with the pending rows
together. What remains is a triangular system of the few new rows (the WY form, Yang et al., 2024).
S is written only where the pending rows leave no room. ``engine.recurrent`` has the derivation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.delta_net import DeltaRows, LayerState
from cgbench.kernels.gpu import early, launch_keywords

WARPS = 8
COLUMNS_A_WARP = 16
FEW_ROWS = 8
MOST_REGISTERS = 128
"""With so many registers a thread two programs fit on a multiprocessor. More rows take more."""
_LANES = 8
"""So many lanes of a warp share its columns of the matrix."""
LANES = tl.constexpr(_LANES)
TAKEN_AT_ONCE = 128

# Above this torch's softplus is the identity.
_SOFTPLUS_LIMIT = tl.constexpr(20.0)
# It guards against zero, as in transformers.
_EPSILON = tl.constexpr(1e-6)


@triton.jit
def _softplus(x):
    y = tl.exp(tl.minimum(x, _SOFTPLUS_LIMIT))
    # 1 + y loses low bits of a small y. The scaling brings them back (Kahan).
    above = 1.0 + y
    scaled = tl.where(above == 1.0, y, tl.log(above) * (y / (above - 1.0)))
    return tl.where(x > _SOFTPLUS_LIMIT, x, scaled)


@triton.jit  # type: ignore[untyped-decorator]
def _tap(mixed, ring, row, begin, in_row, stride, CHANNELS: tl.constexpr, RING: tl.constexpr):
    """Return the convolution's input ``row`` rows after the first, of new rows or of the ring."""
    new = tl.load(mixed + row * stride, mask=in_row & (row >= 0), other=0.0)
    position = begin + row
    is_old = (row < 0) & (position >= 0)
    old = tl.load(ring + position % RING * CHANNELS, mask=in_row & is_old, other=0.0)
    return new.to(tl.float32) + old.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _activated(x, dtype: tl.constexpr):
    """Return ``silu(x)``, rounded where torch's operations round."""
    x = x.to(dtype).to(tl.float32)
    return (x * tl.sigmoid(x)).to(dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of_lanes(ROWS: tl.constexpr):
    """Return the numbers of rows, ``[ROWS / LANES, 1, LANES, 1]``: neighbours in one lane.

    A matrix that is addressed so gives each warp some columns, and each lane some of their rows.
    """
    of_lane = tl.arange(0, ROWS // LANES)[:, None, None, None]
    return tl.arange(0, LANES)[None, None, :, None] * (ROWS // LANES) + of_lane


@triton.jit  # type: ignore[untyped-decorator]
def _read(told, state, old_updates, new_updates, k4, p4, n4, QUERY_LEN: tl.constexpr):
    """Return what a row reads of the matrix, the pending updates and the new ones,
    ``[1, warps, 1, columns]``. No warp waits for another."""
    OF_NEW: tl.constexpr = LANES * (state.shape[0] + old_updates.shape[0])
    OF_DECAY: tl.constexpr = OF_NEW + LANES * new_updates.shape[0]
    of_pending = tl.load(told + LANES * state.shape[0] + p4)
    of_new = tl.load(told + OF_NEW + n4, mask=n4 < QUERY_LEN, other=0.0)
    parts = tl.sum(state * tl.load(told + k4), 0) * tl.load(told + OF_DECAY)
    parts += tl.sum(old_updates * of_pending, 0) + tl.sum(new_updates * of_new, 0)
    return tl.expand_dims(tl.expand_dims(tl.sum(parts, 1), 1), 0)


@triton.jit(do_not_specialize=["rate_stride", "time_stride"])  # type: ignore[untyped-decorator]
def _delta_kernel(
    mixed,
    gate,
    rate,
    time_step,
    conv_weight,
    conv_bias,
    a_log,
    dt_bias,
    norm_weight,
    slots,
    positions,
    num_pending,
    matrix,
    conv,
    keys,
    updates,
    log_decays,
    told,
    out,
    scale,
    epsilon,
    mixed_stride,
    gate_stride,
    rate_stride,
    time_stride,
    KEY_PART: tl.constexpr,
    VALUE_PART: tl.constexpr,
    KEY_STEP: tl.constexpr,
    VALUE_STEP: tl.constexpr,
    GATE_STEP: tl.constexpr,
    RATE_STEP: tl.constexpr,
    TIME_STEP: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    MOST_PENDING: tl.constexpr,
    KEPT: tl.constexpr,
    RING: tl.constexpr,
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = HEADS // KEY_HEADS
    CHANNELS: tl.constexpr = 2 * KEY_HEADS * KEY_DIM + HEADS * VALUE_DIM
    # A row of ``told`` has what multiplies the matrix, the pending updates and the new ones.
    OF_NEW: tl.constexpr = BLOCK_K + BLOCK_P
    OF_DECAY: tl.constexpr = OF_NEW + BLOCK_N
    TOLD: tl.constexpr = OF_DECAY + 4
    dtype: tl.constexpr = out.dtype.element_ty
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    key_head = head // GROUP
    told += tl.program_id(0).to(tl.int64) * (QUERY_LEN * (2 * TOLD + BLOCK_V))

    # All of this was written before the kernel ahead began, so it is read before the wait.
    slot = tl.load(slots + b, cache_modifier=".cg").to(tl.int64)
    begin = tl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(tl.int32)
    count = tl.load(num_pending + b, cache_modifier=".cg").to(tl.int32)
    of_head = slot * HEADS + head
    keys += of_head * KEPT * KEY_DIM
    updates += of_head * KEPT * VALUE_DIM
    log_decays += of_head * KEPT
    matrix += of_head * KEY_DIM * VALUE_DIM
    conv += slot * RING * CHANNELS
    mixed += b * QUERY_LEN * mixed_stride
    gate += b * QUERY_LEN * gate_stride + key_head * GATE_STEP + head % GROUP * VALUE_DIM
    rate += b * QUERY_LEN * rate_stride + key_head * RATE_STEP + head % GROUP
    time_step += b * QUERY_LEN * time_stride + key_head * TIME_STEP + head % GROUP
    out += (b * QUERY_LEN * HEADS + head) * VALUE_DIM
    # [rows of a lane, warps, lanes, columns]
    k4 = _rows_of_lanes(BLOCK_K)
    p4 = _rows_of_lanes(BLOCK_P)
    n4 = _rows_of_lanes(BLOCK_N)
    v4 = tl.arange(0, BLOCK_V // COLUMNS)[None, :, None, None] * COLUMNS
    v4 += tl.arange(0, COLUMNS)[None, None, None, :]
    in_value = v4 < VALUE_DIM
    to_matrix = matrix + (k4 * VALUE_DIM + v4)
    in_matrix = (k4 < KEY_DIM) & in_value
    # Nothing came before a request's first row. So a padded row computes the same whatever lies
    # here.
    state = tl.load(to_matrix, mask=in_matrix & (begin > 0), other=0.0, cache_modifier=".cg")
    total = tl.load(
        log_decays + (begin - 1) % KEPT, mask=count > 0, other=0.0, cache_modifier=".cg"
    )
    first = begin - count
    if count + QUERY_LEN > MOST_PENDING:
        state *= tl.exp(total)
        for j in range(count):
            place = (first + j) % KEPT
            weight = tl.exp(total - tl.load(log_decays + place, cache_modifier=".cg"))
            from_key = keys + place * KEY_DIM + k4
            old_key = tl.load(from_key, mask=k4 < KEY_DIM, other=0.0, cache_modifier=".cg")
            from_update = updates + place * VALUE_DIM + v4
            update = tl.load(from_update, mask=in_value, other=0.0, cache_modifier=".cg")
            state += (old_key * weight) * update
        count *= 0
        total *= 0.0
    old_updates = tl.load(
        updates + ((first + p4) % KEPT * VALUE_DIM + v4),
        mask=(p4 < count) & in_value,
        other=0.0,
        cache_modifier=".cg",
    )
    d = tl.arange(0, BLOCK_K)
    in_key = d < KEY_DIM
    # The rows that a new one may read after: first the pending ones, then the new ones.
    m = tl.arange(0, BLOCK_M)
    is_pending = m < count
    place = (first + m) % KEPT
    earlier = tl.load(
        keys + (place[:, None] * KEY_DIM + d[None, :]),
        mask=is_pending[:, None] & in_key[None, :],
        other=0.0,
        cache_modifier=".cg",
    )
    decays = tl.load(log_decays + place, mask=is_pending, other=0.0, cache_modifier=".cg")
    # Counted from the new rows on.
    decays = tl.where(is_pending, decays - total, 0.0)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    if first + count < begin:
        # What was pending is in it now.
        tl.store(to_matrix, state, mask=in_matrix)

    # Rows of keys, and after them rows of queries.
    r = tl.arange(0, 2 * BLOCK_S)
    s = r % BLOCK_S
    is_key = r < BLOCK_S
    v = tl.arange(0, BLOCK_V)
    in_rows = s < QUERY_LEN
    q_channel = key_head * KEY_DIM + d
    k_channel = KEY_HEADS * KEY_DIM + q_channel
    v_channel = 2 * KEY_HEADS * KEY_DIM + head * VALUE_DIM + v
    channel = tl.where(is_key[:, None], k_channel[None, :], q_channel[None, :])
    in_both = in_rows[:, None] & in_key[None, :]
    in_values = (in_rows & is_key)[:, None] & (v < VALUE_DIM)[None, :]
    from_both = mixed + key_head * KEY_STEP + (tl.where(is_key, KEY_PART, 0)[:, None] + d[None, :])
    from_values = mixed + key_head * VALUE_STEP + VALUE_PART + head % GROUP * VALUE_DIM + v[None, :]
    both = tl.zeros([2 * BLOCK_S, BLOCK_K], tl.float32)
    value = tl.zeros([2 * BLOCK_S, BLOCK_V], tl.float32)
    if HAS_BIAS:
        both += tl.load(conv_bias + channel, mask=in_both, other=0.0).to(tl.float32)
        v_bias = tl.load(conv_bias + v_channel, mask=v < VALUE_DIM, other=0.0)
        value += v_bias.to(tl.float32)[None, :]
    for tap in tl.static_range(TAPS):
        of_tap = (s + tap - (TAPS - 1))[:, None]
        weight = tl.load(conv_weight + channel * TAPS + tap, mask=in_both, other=0.0)
        both += weight.to(tl.float32) * _tap(
            from_both, conv + channel, of_tap, begin, in_both, mixed_stride, CHANNELS, RING
        )
        v_weight = tl.load(conv_weight + v_channel * TAPS + tap, mask=v < VALUE_DIM, other=0.0)
        ring = conv + v_channel[None, :]
        value += v_weight.to(tl.float32)[None, :] * _tap(
            from_values, ring, of_tap, begin, in_values, mixed_stride, CHANNELS, RING
        )
    # The ring has room for the new rows beside those read here, so no program waits.
    of_ring = ((begin + s) % RING * CHANNELS)[:, None]
    new = tl.load(from_both + s[:, None] * mixed_stride, mask=in_both, other=0.0)
    tl.store(conv + (of_ring + channel), new, mask=in_both & (head % GROUP == 0))
    new = tl.load(from_values + s[:, None] * mixed_stride, mask=in_values, other=0.0)
    tl.store(conv + (of_ring + v_channel[None, :]), new, mask=in_values)
    both = _activated(both, dtype)
    value = _activated(value, dtype)
    both *= tl.rsqrt(tl.sum(both * both, 1) + _EPSILON)[:, None]
    both *= tl.where(is_key, 1.0, scale)[:, None]

    c = tl.arange(0, 2 * BLOCK_S)
    step = tl.load(time_step + c * time_stride, mask=c < QUERY_LEN, other=0.0).to(tl.float32)
    step = _softplus(step + tl.load(dt_bias + head).to(tl.float32))
    log_decay = -tl.exp(tl.load(a_log + head).to(tl.float32)) * step
    log_decay = tl.where(c < QUERY_LEN, log_decay, 0.0)
    since = tl.sum(tl.where(c[None, :] <= s[:, None], log_decay[None, :], 0.0), 1)
    beta = tl.sigmoid(tl.load(rate + s * rate_stride, mask=in_rows, other=0.0).to(tl.float32))
    # Rounded where torch's operations round.
    beta = beta.to(dtype).to(tl.float32)

    # What all warps made is told to each through memory, where a lane finds what its rows need.
    of_told = (tl.where(is_key, 0, QUERY_LEN) + s) * TOLD
    tl.store(told + (of_told[:, None] + d[None, :]), both, mask=in_rows[:, None])
    tl.store(told + OF_DECAY + of_told, tl.exp(total + since), mask=in_rows)
    tl.store(told + OF_DECAY + 1 + of_told, since, mask=in_rows)
    tl.store(told + OF_DECAY + 2 + of_told, beta, mask=in_rows)
    values = told + 2 * QUERY_LEN * TOLD
    tl.store(values + (s[:, None] * BLOCK_V + v[None, :]), value, mask=(in_rows & is_key)[:, None])
    to_place = (begin + s) % KEPT
    in_new = in_rows & is_key
    to_keys = keys + (to_place[:, None] * KEY_DIM + d[None, :])
    tl.store(to_keys, both, mask=in_new[:, None] & in_key[None, :])
    tl.store(log_decays + to_place, total + since, mask=in_new)
    tl.debug_barrier()
    n = m - BLOCK_P
    is_new = (n >= 0) & (n < QUERY_LEN)
    earlier += tl.load(told + (n[:, None] * TOLD + d[None, :]), mask=is_new[:, None], other=0.0)
    decays += tl.load(told + OF_DECAY + 1 + n * TOLD, mask=is_new, other=0.0)
    for i in range(2 * QUERY_LEN):
        of_row = told + i * TOLD
        row = tl.load(of_row + d)
        # A key reads after the rows before its own, a query after its own too.
        num_before = tl.where(i < QUERY_LEN, i, i - QUERY_LEN + 1)
        is_before = is_pending | (is_new & (n < num_before))
        # Masked before exp, because for a later row the difference may overflow.
        age = tl.where(is_before, tl.load(of_row + OF_DECAY + 1) - decays, float("-inf"))
        pairs = tl.sum(earlier * row[None, :], 1) * tl.exp(age)
        tl.store(of_row + BLOCK_K + m, pairs, mask=m < BLOCK_P + BLOCK_N)
    tl.debug_barrier()

    # No lane reads anything here. It gives these numbers the lanes that the matrix has.
    new_updates = tl.load(told + n4 + v4, mask=(n4 < 0) & (v4 >= 0), other=0.0)
    read = new_updates
    for i in range(QUERY_LEN):
        of_key = told + i * TOLD
        x = _read(of_key, state, old_updates, new_updates, k4, p4, n4, QUERY_LEN)
        own = (tl.load(values + i * BLOCK_V + v4) - x) * tl.load(of_key + OF_DECAY + 2)
        new_updates = tl.where(n4 == i, own, new_updates)
        of_query = of_key + QUERY_LEN * TOLD
        x = _read(of_query, state, old_updates, new_updates, k4, p4, n4, QUERY_LEN)
        read = tl.where(n4 == i, x, read)
    keep = (n4 < QUERY_LEN) & in_value
    tl.store(updates + ((begin + n4) % KEPT * VALUE_DIM + v4), new_updates, mask=keep)

    # Rounded where transformers' module rounds.
    x = read.to(dtype).to(tl.float32)
    squares = tl.sum(tl.sum(tl.where(in_value, x * x, 0.0), 3), 1)
    x *= tl.rsqrt(squares / VALUE_DIM + epsilon)[:, None, :, None]
    gain = tl.load(norm_weight + v4, mask=in_value, other=0.0)
    x = x.to(dtype).to(tl.float32) * gain.to(tl.float32)
    if norm_weight.dtype.element_ty == dtype:
        x = x.to(dtype).to(tl.float32)
    opened = tl.load(gate + (n4 * gate_stride + v4), mask=keep, other=0.0)
    opened = opened.to(tl.float32)
    x *= opened * tl.sigmoid(opened)
    tl.store(out + (n4 * (HEADS * VALUE_DIM) + v4), x.to(dtype), mask=keep)


def delta_rule(
    layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> Tensor:
    """Return what ``rows`` read of the state, normed and gated, ``[B, S, H, Dv]``.

    They are in ``slots [B]`` at ``positions [B, S]``, after the ``num_pending [B]`` kept rows.
    ``slots``, ``positions``, ``num_pending`` and the layer must be written before the kernel ahead
    begins.
    """
    net, device = rows.net, rows.query.device
    batch, query_len = rows.num_tokens
    most, kept = layer.most_pending, layer.keys.shape[2]
    query, key, value = _of_one_tensor(rows.query, rows.key, rows.value)
    gate, rate, time_step = map(_evenly, (rows.gate, rows.rate, rows.time_step))
    assert query_len <= min(most, kept - most) and net.activation == "silu"
    assert net.conv_weight.is_contiguous() and positions.is_contiguous()
    assert num_pending.is_contiguous()
    block_n = max(_LANES, triton.next_power_of_2(query_len))
    block_p = max(_LANES, triton.next_power_of_2(most))
    block_k = max(_LANES, triton.next_power_of_2(net.key_size))
    block_v = triton.next_power_of_2(net.value_size)
    programs = batch * net.num_heads
    shape = batch, query_len, net.num_heads, net.value_size
    out = torch.empty(shape, dtype=query.dtype, device=device)
    row = 2 * (block_k + block_p + block_n + 4) + block_v
    told = torch.empty(programs * query_len * row, dtype=torch.float32, device=device)
    _delta_kernel[(programs,)](
        query,
        gate,
        rate,
        time_step,
        net.conv_weight,
        net.conv_weight if net.conv_bias is None else net.conv_bias,
        net.a_log,
        net.dt_bias,
        net.norm_weight,
        slots,
        positions,
        num_pending,
        layer.matrix,
        layer.conv,
        layer.keys,
        layer.updates,
        layer.log_decays,
        told,
        out,
        net.key_size**-0.5,
        net.norm_epsilon,
        *map(_row_stride, (query, gate, rate, time_step)),
        KEY_PART=key.storage_offset() - query.storage_offset(),
        VALUE_PART=value.storage_offset() - query.storage_offset(),
        KEY_STEP=key.stride(2),
        VALUE_STEP=value.stride(2),
        GATE_STEP=gate.stride(2),
        RATE_STEP=rate.stride(2),
        TIME_STEP=time_step.stride(2),
        QUERY_LEN=query_len,
        MOST_PENDING=most,
        KEPT=kept,
        RING=layer.conv.shape[1],
        TAPS=net.conv_weight.shape[1],
        HAS_BIAS=net.conv_bias is not None,
        KEY_HEADS=net.num_key_heads,
        HEADS=net.num_heads,
        KEY_DIM=net.key_size,
        VALUE_DIM=net.value_size,
        BLOCK_S=triton.next_power_of_2(query_len),
        BLOCK_P=block_p,
        BLOCK_N=block_n,
        BLOCK_M=triton.next_power_of_2(block_p + block_n),
        BLOCK_K=block_k,
        BLOCK_V=block_v,
        COLUMNS=min(COLUMNS_A_WARP, block_v),
        EARLY=early(device),
        num_warps=WARPS,
        maxnreg=MOST_REGISTERS if query_len <= FEW_ROWS else None,
        **launch_keywords(device),
    )
    return out


def _of_one_tensor(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return ``parts [B, S, heads, size]`` as columns of one tensor, as a product leaves them."""
    places = {(each.untyped_storage().data_ptr(), _row_stride(each)) for each in parts}
    if len(places) == 1 and all(map(_is_even, parts)):
        return parts
    sizes = [each.shape[2] * each.shape[3] for each in parts]
    columns = torch.cat([each.flatten(2) for each in parts], dim=-1).split(sizes, dim=-1)
    return tuple(
        part.unflatten(-1, each.shape[2:]) for part, each in zip(columns, parts, strict=True)
    )


def _evenly(each: Tensor) -> Tensor:
    """Return ``each [B, S, heads, size]`` with the tokens at equal distances."""
    return each if _is_even(each) else each.contiguous()


def _is_even(each: Tensor) -> bool:
    """Return whether the tokens of ``each [B, S, heads, size]`` lie at equal distances, and a
    head's columns side by side."""
    batch, length, _, size = each.shape
    is_even = 1 in (batch, length) or each.stride(0) == length * each.stride(1)
    return is_even and (size == 1 or each.stride(3) == 1)


def _row_stride(each: Tensor) -> int:
    """Return the distance of two tokens. A dimension of one has no stride that means anything."""
    return each.stride(0 if each.shape[1] == 1 else 1)


@triton.jit  # type: ignore[untyped-decorator]
def _take_up_kernel(
    length,
    slots,
    positions,
    num_pending,
    num_rows,
    QUERY_LEN: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = b < num_rows
    slot = tl.load(slots + b, mask=is_row, other=0)
    begin = tl.load(positions + b * QUERY_LEN, mask=is_row, other=0)
    old = tl.load(length + slot, mask=is_row, other=0)
    count = tl.minimum(tl.maximum(begin - old, 0), MOST)
    tl.store(num_pending + b, count, mask=is_row)
    tl.store(length + slot, begin, mask=is_row & (count + QUERY_LEN > MOST))


def take_up(length: Tensor, slots: Tensor, positions: Tensor, most: int) -> Tensor:
    """Compute ``delta_rule.take_up``. It is not launched early, and lets nothing begin early."""
    num_rows, query_len = positions.shape
    assert positions.is_contiguous() and slots.is_contiguous()
    count = torch.empty_like(slots)
    _take_up_kernel[(triton.cdiv(num_rows, TAKEN_AT_ONCE),)](
        length,
        slots,
        positions,
        count,
        num_rows,
        QUERY_LEN=query_len,
        MOST=most,
        BLOCK=TAKEN_AT_ONCE,
    )
    return count
