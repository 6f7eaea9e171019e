"""Compute what a gated delta net does between its projections in one Triton kernel a layer.

That is the convolution, the gates, the delta rule and the gated norm. Its floor is one read of the
matrices. In torch's operations it is some sixty kernels of a microsecond or two each.

A program has one value head of one request. It reads the head's matrix S once, before the kernel
ahead has ended. The rows' keys and queries are multiplied with S and with the pending rows by
tensor cores. What remains is a triangular system of the few new rows (the WY form, Yang et al.,
2024). S is written only where the pending rows leave no room. ``engine.recurrent`` has the
derivation, and ``gluon_recurrent`` is faster where it can run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gdn import gluon_recurrent
from cgbench.kernels.gdn.delta_net import DeltaRows, LayerState
from cgbench.kernels.gdn.recurrent_launch import recurrent_launch

WARPS = 8
FEW_WARPS = 4
"""They take ``LEAST_ROWS``, because half as many hold the rows' operand twice less."""
KEYS_A_PART = 32
LEAST_BLOCK = 16
"""No side of a tensor core's product is shorter."""
LEAST_ROWS = LEAST_BLOCK // 2
"""The keys of so many rows and their queries are one such side."""
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
def _convolved(
    mixed,
    ring,
    weight,
    bias,
    channel,
    row,
    begin,
    keep,
    stride,
    CHANNELS: tl.constexpr,
    RING: tl.constexpr,
    TAPS: tl.constexpr,
    TAP_STRIDE: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return new rows after the convolution and ``silu``, rounded as torch's operations round, and
    the rows as they came. ``mixed`` points to the rows' own inputs."""
    acc = tl.zeros(mixed.shape, tl.float32)
    if HAS_BIAS:
        acc += tl.load(bias + channel, mask=keep, other=0.0).to(tl.float32)
    new = tl.zeros(mixed.shape, mixed.dtype.element_ty)
    for tap in tl.static_range(TAPS):
        back = TAPS - 1 - tap
        of_tap = tl.load(
            weight + (tap * TAP_STRIDE + channel * CHANNEL_STRIDE), mask=keep, other=0.0
        )
        new = tl.load(mixed - back * stride, mask=keep & (row >= back), other=0.0)
        position = begin + row - back
        is_old = keep & (row < back) & (position >= 0)
        from_ring = ring + (position % RING * CHANNELS + channel)
        old = tl.load(from_ring, mask=is_old, other=0.0, cache_modifier=".cg")
        acc += of_tap.to(tl.float32) * (new.to(tl.float32) + old.to(tl.float32))
    # The ring has room for the new rows beside those read here, so no program waits.
    x = acc.to(dtype).to(tl.float32)
    return (x * tl.sigmoid(x)).to(dtype).to(tl.float32), new


@triton.jit  # type: ignore[untyped-decorator]
def _parts(x, SIZE: tl.constexpr):
    """Cut ``x [rows, columns]`` into parts of ``SIZE`` columns."""
    if x.shape[1] > SIZE:
        halves = tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2])
        left, right = tl.split(tl.permute(halves, [0, 2, 1]))
        parts = _parts(left, SIZE) + _parts(right, SIZE)
    else:
        parts = (x,)
    return parts


@triton.jit  # type: ignore[untyped-decorator]
def _matrix_rows(
    matrix, part, v, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PART: tl.constexpr
):
    """Return where a part of the matrix's rows lies, and which of it there is."""
    of_part = part * PART + tl.arange(0, PART)
    in_matrix = (of_part < KEY_DIM)[:, None] & (v < VALUE_DIM)[None, :]
    return matrix + (of_part[:, None] * VALUE_DIM + v[None, :]), in_matrix


@triton.jit  # type: ignore[untyped-decorator]
def _matrix_parts(
    matrix,
    v,
    is_there,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PART: tl.constexpr,
):
    """Read the matrix in parts of ``PART`` rows."""
    parts = ()
    for part in tl.static_range(BLOCK_K // PART):
        place, in_matrix = _matrix_rows(matrix, part, v, KEY_DIM, VALUE_DIM, PART)
        read = tl.load(place, mask=in_matrix & is_there, other=0.0, cache_modifier=".cg")
        parts += (read,)  # type: ignore[assignment]
    return parts


@triton.jit
def _dot(a, b, acc):
    """Return ``acc + a @ b`` to float32's precision, by tensor cores that multiply 11 bits."""
    KEEP: tl.constexpr = -8192
    a_high = (a.to(tl.int32, bitcast=True) & KEEP).to(tl.float32, bitcast=True)
    b_high = (b.to(tl.int32, bitcast=True) & KEEP).to(tl.float32, bitcast=True)
    acc = tl.dot(a - a_high, b_high, acc, input_precision="tf32")
    acc = tl.dot(a_high, b - b_high, acc, input_precision="tf32")
    return tl.dot(a_high, b_high, acc, input_precision="tf32")


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
    TAP_STRIDE: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PART: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = HEADS // KEY_HEADS
    CHANNELS: tl.constexpr = 2 * KEY_HEADS * KEY_DIM + HEADS * VALUE_DIM
    ROWS: tl.constexpr = 2 * BLOCK_S
    dtype: tl.constexpr = out.dtype.element_ty
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    key_head = head // GROUP

    # All of this was written before the kernel ahead began, so it is read before the wait.
    slot = tl.load(slots + b, cache_modifier=".cg").to(tl.int64)
    begin = tl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(tl.int32)
    count = tl.load(num_pending + b, cache_modifier=".cg").to(tl.int32)
    first = begin - count
    of_head = slot * HEADS + head
    keys += of_head * KEPT * KEY_DIM
    updates += of_head * KEPT * VALUE_DIM
    log_decays += of_head * KEPT
    conv += slot * RING * CHANNELS
    mixed += b * QUERY_LEN * mixed_stride
    gate += b * QUERY_LEN * gate_stride + key_head * GATE_STEP + head % GROUP * VALUE_DIM
    rate += b * QUERY_LEN * rate_stride + key_head * RATE_STEP + head % GROUP
    time_step += b * QUERY_LEN * time_stride + key_head * TIME_STEP + head % GROUP
    out += (b * QUERY_LEN * HEADS + head) * VALUE_DIM
    d = tl.arange(0, BLOCK_K)
    v = tl.arange(0, BLOCK_V)
    in_key = (d < KEY_DIM)[None, :]
    in_value = (v < VALUE_DIM)[None, :]
    matrix += of_head * KEY_DIM * VALUE_DIM
    # Nothing came before a request's first row. So a padded row computes the same whatever lies
    # here.
    states = _matrix_parts(matrix, v, begin > 0, KEY_DIM, VALUE_DIM, BLOCK_K, PART)
    p = tl.arange(0, BLOCK_P)
    is_pending = p < count
    place = ((first + p) % KEPT)[:, None]
    old_keys = ()
    for part in tl.static_range(BLOCK_K // PART):
        of_part = part * PART + tl.arange(0, PART)
        in_old = is_pending[:, None] & (of_part < KEY_DIM)[None, :]
        from_keys = keys + (place * KEY_DIM + of_part[None, :])
        old_key = tl.load(from_keys, mask=in_old, other=0.0, cache_modifier=".cg")
        old_keys += (old_key,)  # type: ignore[assignment]
    in_old = is_pending[:, None] & in_value
    old_updates = tl.load(
        updates + (place * VALUE_DIM + v[None, :]), mask=in_old, other=0.0, cache_modifier=".cg"
    )
    total = tl.load(
        log_decays + (begin - 1) % KEPT, mask=count > 0, other=0.0, cache_modifier=".cg"
    )
    decays = tl.load(
        log_decays + (first + p) % KEPT, mask=is_pending, other=0.0, cache_modifier=".cg"
    )
    # Counted from the new rows on. The rows that no request has are 0 in all that follows.
    decays = tl.where(is_pending, decays - total, 0.0)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()

    # Rows of keys, and after them rows of queries.
    r = tl.arange(0, ROWS)
    s = r % BLOCK_S
    is_key = r < BLOCK_S
    in_rows = s < QUERY_LEN
    in_new = is_key & in_rows
    in_out = in_rows & (r >= BLOCK_S)
    channel = tl.where(is_key, KEY_HEADS * KEY_DIM, 0)[:, None] + (key_head * KEY_DIM + d)[None, :]
    from_both = mixed + key_head * KEY_STEP + (tl.where(is_key, KEY_PART, 0)[:, None] + d[None, :])
    keep = in_rows[:, None] & in_key
    both, new = _convolved(
        from_both + s[:, None] * mixed_stride,
        conv,
        conv_weight,
        conv_bias,
        channel,
        s[:, None],
        begin,
        keep,
        mixed_stride,
        CHANNELS,
        RING,
        TAPS,
        TAP_STRIDE,
        CHANNEL_STRIDE,
        HAS_BIAS,
        dtype,
    )
    of_ring = ((begin + s) % RING * CHANNELS)[:, None]
    tl.store(conv + (of_ring + channel), new, mask=keep & (head % GROUP == 0))
    channel = (2 * KEY_HEADS * KEY_DIM + head * VALUE_DIM + v)[None, :]
    keep = in_new[:, None] & in_value
    from_values = mixed + key_head * VALUE_STEP + VALUE_PART + head % GROUP * VALUE_DIM + v[None, :]
    value, new = _convolved(
        from_values + s[:, None] * mixed_stride,
        conv,
        conv_weight,
        conv_bias,
        channel,
        s[:, None],
        begin,
        keep,
        mixed_stride,
        CHANNELS,
        RING,
        TAPS,
        TAP_STRIDE,
        CHANNEL_STRIDE,
        HAS_BIAS,
        dtype,
    )
    tl.store(conv + (of_ring + channel), new, mask=keep)
    opened = tl.load(
        gate + (s[:, None] * gate_stride + v[None, :]), mask=in_out[:, None] & in_value, other=0.0
    ).to(tl.float32)
    both *= tl.rsqrt(tl.sum(both * both, 1) + _EPSILON)[:, None]
    both *= tl.where(is_key, 1.0, scale)[:, None]

    step = tl.load(time_step + s * time_stride, mask=in_rows, other=0.0).to(tl.float32)
    step = _softplus(step + tl.load(dt_bias + head).to(tl.float32))
    log_decay = -tl.exp(tl.load(a_log + head).to(tl.float32)) * step
    log_decay = tl.where(in_new, log_decay, 0.0)
    # Since the last pending row, of rows and of columns.
    since = tl.sum(tl.where(r[None, :] <= s[:, None], log_decay[None, :], 0.0), 1)
    since_of = tl.sum(tl.where(r[:, None] <= s[None, :], log_decay[:, None], 0.0), 0)
    beta = tl.sigmoid(tl.load(rate + s * rate_stride, mask=in_rows, other=0.0).to(tl.float32))
    # Rounded where torch's operations round.
    beta = beta.to(dtype).to(tl.float32)

    if count + QUERY_LEN > MOST_PENDING:
        weights = tl.exp(tl.where(is_pending, -decays, float("-inf")))[:, None]
        for part in tl.static_range(BLOCK_K // PART):
            to_matrix, in_matrix = _matrix_rows(matrix, part, v, KEY_DIM, VALUE_DIM, PART)
            taken = tl.trans(old_keys[part] * weights)
            taken = _dot(taken, old_updates, states[part] * tl.exp(total))
            tl.store(to_matrix, taken, mask=in_matrix)
        # Read again by other lanes than wrote it.
        tl.debug_barrier()
        states = _matrix_parts(matrix, v, begin > 0, KEY_DIM, VALUE_DIM, BLOCK_K, PART)
        total *= 0.0
        count *= 0
    kept_at = ((begin + s) % KEPT)[:, None]
    tl.store(keys + (kept_at * KEY_DIM + d[None, :]), both, mask=in_new[:, None] & in_key)
    tl.store(log_decays + (begin + s) % KEPT, total + since, mask=in_new)

    # What each row reads before the new rows' updates.
    read = tl.zeros([ROWS, BLOCK_V], tl.float32)
    pairs = tl.zeros([ROWS, ROWS], tl.float32)
    old_pairs = tl.zeros([ROWS, BLOCK_P], tl.float32)
    parts = _parts(both, PART)
    for part in tl.static_range(BLOCK_K // PART):
        read = _dot(parts[part], states[part], read)
        old_pairs = _dot(parts[part], tl.trans(old_keys[part]), old_pairs)
        pairs = _dot(parts[part], tl.trans(parts[part]), pairs)
    # Masked before exp, because of no row the difference may overflow.
    age = tl.where((p < count)[None, :], since[:, None] - decays[None, :], float("-inf"))
    read = _dot(old_pairs * tl.exp(age), old_updates, read * tl.exp(total + since)[:, None])
    # A key reads after the rows before its own, a query after its own too.
    num_before = tl.where(is_key, s, s + 1)
    age = tl.where(
        r[None, :] < num_before[:, None], since[:, None] - since_of[None, :], float("-inf")
    )
    pairs *= tl.exp(age) * tl.where(is_key, -beta, 1.0)[:, None]
    read = tl.where(is_key[:, None], (value - read) * beta[:, None], read)
    for i in tl.static_range(QUERY_LEN):
        update = tl.sum(tl.where((r == i)[:, None], read, 0.0), 0)
        weight = tl.sum(tl.where((r == i)[None, :], pairs, 0.0), 1)
        read += weight[:, None] * update[None, :]
    tl.store(updates + (kept_at * VALUE_DIM + v[None, :]), read, mask=in_new[:, None] & in_value)

    # Rounded where transformers' module rounds.
    x = read.to(dtype).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 1) / VALUE_DIM + epsilon)[:, None]
    gain = tl.load(norm_weight + v, mask=v < VALUE_DIM, other=0.0)
    x = x.to(dtype).to(tl.float32) * gain.to(tl.float32)[None, :]
    if norm_weight.dtype.element_ty == dtype:
        x = x.to(dtype).to(tl.float32)
    x *= opened * tl.sigmoid(opened)
    to_out = out + (s[:, None] * (HEADS * VALUE_DIM) + v[None, :])
    tl.store(to_out, x.to(dtype), mask=in_out[:, None] & in_value)


def delta_rule(
    layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> Tensor:
    """Return what ``rows`` read of the state, normed and gated, ``[B, S, H, Dv]``.

    They are in ``slots [B]`` at ``positions [B, S]``, after the ``num_pending [B]`` kept rows.
    ``slots``, ``positions``, ``num_pending`` and the layer must be written before the kernel ahead
    begins. ``gluon_recurrent`` runs instead where it can.
    """
    launch = recurrent_launch(layer, rows, slots, positions, num_pending)
    if gluon_recurrent.takes(rows):
        return gluon_recurrent.delta_rule(launch)
    net, (_, query_len) = rows.net, rows.num_tokens
    few = query_len <= LEAST_ROWS
    block_k = max(LEAST_BLOCK, triton.next_power_of_2(net.key_size))
    _delta_kernel[(launch.programs,)](
        *launch.arguments,
        **launch.keywords,
        TAPS=net.conv_weight.shape[1],
        KEY_DIM=net.key_size,
        VALUE_DIM=net.value_size,
        BLOCK_S=max(LEAST_ROWS, triton.next_power_of_2(query_len)),
        BLOCK_P=max(LEAST_BLOCK, triton.next_power_of_2(layer.most_pending)),
        BLOCK_K=block_k,
        BLOCK_V=max(LEAST_BLOCK, triton.next_power_of_2(net.value_size)),
        PART=min(KEYS_A_PART, block_k),
        num_warps=FEW_WARPS if few else WARPS,
    )
    return launch.out


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
