"""Compute a gated delta net's few rows in one Gluon kernel a layer, for heads of 128.

It computes what ``triton_recurrent`` does, in the same form, with layouts of its own choice. The
head's matrix comes into shared memory by asynchronous copies, which hold no registers. A warp has
some of its columns as one operand of a tensor core's product. The rows' keys and queries are the
other operand. Pairs of rows are dealt to warps, and the gates of rows to lanes.
"""

import functools

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gdn.delta_net import DeltaRows
from cgbench.kernels.gdn.recurrent_launch import RecurrentLaunch

# Triton 3.7 has another name for it.
_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier

SIZE = 128
"""Of a key, and of a value."""
MOST_ROWS = 8
WARPS = 8
MOST_REGISTERS = 128
"""With so many registers a thread two programs fit on a multiprocessor."""
FEWER_REGISTERS = 80
"""With so many three fit. A few words of a program go through memory then."""
MANY_PROGRAMS = 512
"""From so many on three on a multiprocessor are faster, though each is slower."""

TAPS = 4
LEAST_ROWS = 4
"""The keys of so many rows and their queries are the shorter side of a tensor core's product."""
LEAST_PENDING = 16
"""A warp's lanes take so many at once, in two steps of a product."""
AMPERE = (8, 0)

_SIZE = gl.constexpr(SIZE)
_TAPS = gl.constexpr(TAPS)
_WARPS = gl.constexpr(WARPS)
_PART = gl.constexpr(32)
# Above this torch's softplus is the identity.
_SOFTPLUS_LIMIT = gl.constexpr(20.0)
# It guards against zero, as in transformers.
_EPSILON = gl.constexpr(1e-6)
_HIGH_BITS = gl.constexpr(-8192)


@gluon.jit
def _softplus(x):
    y = gl.exp(gl.minimum(x, _SOFTPLUS_LIMIT))
    # 1 + y loses low bits of a small y. The scaling brings them back (Kahan).
    above = 1.0 + y
    scaled = gl.where(above == 1.0, y, gl.log(above) * (y / (above - 1.0)))
    return gl.where(x > _SOFTPLUS_LIMIT, x, scaled)


@gluon.jit
def _silu(x):
    return x / (1.0 + gl.exp(-x))


@gluon.jit
def _high(x):
    """The bits of ``x`` that a tensor core multiplies."""
    return (x.to(gl.int32, bitcast=True) & _HIGH_BITS).to(gl.float32, bitcast=True)


@gluon.jit
def _dot(a, b, acc):
    """Return ``acc + a @ b`` to float32's precision."""
    a_high, b_high = _high(a), _high(b)
    acc = mma_v2(a - a_high, b_high, acc, input_precision="tf32")
    acc = mma_v2(a_high, b - b_high, acc, input_precision="tf32")
    return mma_v2(a_high, b_high, acc, input_precision="tf32")


@gluon.jit  # type: ignore[untyped-decorator]
def _since(log_decays, s, QUERY_LEN: gl.constexpr, LAYOUT: gl.constexpr):
    """Return the sum of the new rows' log decays up to row ``s``, which is in ``LAYOUT``."""
    since = s.to(gl.float32) * 0.0
    for i in gl.static_range(QUERY_LEN):
        since += gl.where(s >= i, log_decays.slice(i, 1, 0).load(LAYOUT), 0.0)
    return since


@gluon.jit  # type: ignore[untyped-decorator]
def _old_inputs(
    ring, channel, s, begin, keep, tap: gl.constexpr, CHANNELS: gl.constexpr, RING: gl.constexpr
):
    """Return the convolution's input ``tap`` rows before row ``s``, if the ring has it."""
    position = begin + s - tap
    is_old = keep & (s < tap) & (position >= 0)
    from_ring = ring + (position % RING * CHANNELS + channel)
    return gl.load(from_ring, mask=is_old, other=0.0, cache_modifier=".cg")


@gluon.jit  # type: ignore[untyped-decorator]
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
    KEY_PART: gl.constexpr,
    VALUE_PART: gl.constexpr,
    KEY_STEP: gl.constexpr,
    VALUE_STEP: gl.constexpr,
    GATE_STEP: gl.constexpr,
    RATE_STEP: gl.constexpr,
    TIME_STEP: gl.constexpr,
    QUERY_LEN: gl.constexpr,
    MOST_PENDING: gl.constexpr,
    KEPT: gl.constexpr,
    RING: gl.constexpr,
    TAP_STRIDE: gl.constexpr,
    CHANNEL_STRIDE: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    KEY_HEADS: gl.constexpr,
    HEADS: gl.constexpr,
    BLOCK_S: gl.constexpr,
    BLOCK_P: gl.constexpr,
    EARLY: gl.constexpr,
):
    GROUP: gl.constexpr = HEADS // KEY_HEADS
    CHANNELS: gl.constexpr = (2 * KEY_HEADS + HEADS) * _SIZE
    ROWS: gl.constexpr = 2 * BLOCK_S
    dtype: gl.constexpr = out.dtype.element_ty
    # Pairs of rows: the first's are dealt to warps, the second's are all in each lane.
    PAIRS: gl.constexpr = gl.BlockedLayout([1, 1, 4], [1, 1, 32], [_WARPS, 1, 1], [2, 1, 0])
    DEALT: gl.constexpr = gl.SliceLayout(1, PAIRS)
    IN_ALL: gl.constexpr = gl.SliceLayout(0, PAIRS)
    OF_PAIRS: gl.constexpr = gl.SliceLayout(2, PAIRS)
    # Sums ``[columns, rows]``, of a transposed matrix.
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [_WARPS, 1], [16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SUMS, 1)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, SUMS, 1)
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    # Four rows' eight columns lie in 32 banks.
    STATE: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 4, [1, 0])

    b = (gl.program_id(0) // HEADS).to(gl.int64)
    head = gl.program_id(0) % HEADS
    key_head = head // GROUP
    # All of this was written before the kernel ahead began, so it is read before the wait.
    slot = gl.load(slots + b, cache_modifier=".cg").to(gl.int64)
    begin = gl.load(positions + b * QUERY_LEN, cache_modifier=".cg").to(gl.int32)
    count = gl.load(num_pending + b, cache_modifier=".cg").to(gl.int32)
    first = begin - count
    of_head = slot * HEADS + head
    keys += of_head * KEPT * _SIZE
    updates += of_head * KEPT * _SIZE
    log_decays += of_head * KEPT
    matrix += of_head * _SIZE * _SIZE
    conv += slot * RING * CHANNELS
    mixed += b * QUERY_LEN * mixed_stride
    gate += b * QUERY_LEN * gate_stride + key_head * GATE_STEP + head % GROUP * _SIZE
    rate += b * QUERY_LEN * rate_stride + key_head * RATE_STEP + head % GROUP
    time_step += b * QUERY_LEN * time_stride + key_head * TIME_STEP + head % GROUP
    out += (b * QUERY_LEN * HEADS + head) * _SIZE

    # Nothing came before a request's first row. So a padded row computes the same whatever lies
    # here.
    d = gl.arange(0, _SIZE, gl.SliceLayout(0, DEALT))
    key = gl.arange(0, _SIZE, gl.SliceLayout(1, DEALT))[:, None]
    state = gl.allocate_shared_memory(gl.float32, [_SIZE, _SIZE], STATE)
    from_matrix = matrix + (key * _SIZE + d[None, :])
    is_there = (key >= 0) & (begin > 0)
    async_copy.async_copy_global_to_shared(state, from_matrix, is_there, cache_modifier=".cg")
    async_copy.commit_group()
    v = gl.arange(0, _SIZE, gl.SliceLayout(1, LEFT))
    p = gl.arange(0, BLOCK_P, gl.SliceLayout(1, DEALT))
    from_keys = keys + ((first + p) % KEPT * _SIZE)[:, None] + d[None, :]
    old_keys = gl.load(from_keys, mask=(p < count)[:, None], other=0.0, cache_modifier=".cg")
    p = gl.arange(0, BLOCK_P, gl.SliceLayout(0, LEFT))
    from_updates = updates + ((first + p) % KEPT * _SIZE)[None, :] + v[:, None]
    old_updates = gl.load(from_updates, mask=(p < count)[None, :], other=0.0, cache_modifier=".cg")
    total = gl.load(
        log_decays + (begin - 1) % KEPT, mask=count > 0, other=0.0, cache_modifier=".cg"
    )
    p = gl.arange(0, BLOCK_P, gl.SliceLayout(1, OF_PAIRS))
    age = gl.load(log_decays + (first + p) % KEPT, mask=p < count, other=0.0, cache_modifier=".cg")
    # From a pending row to the first new one.
    weight = gl.where(p < count, gl.exp(total - age), 0.0)

    # Rows of keys, and after them rows of queries.
    r = gl.arange(0, ROWS, gl.SliceLayout(1, DEALT))
    s = (r % BLOCK_S)[:, None]
    is_key = (r < BLOCK_S)[:, None]
    keep = s < QUERY_LEN
    channel = gl.where(is_key, KEY_HEADS * _SIZE, 0) + (key_head * _SIZE + d)[None, :]
    v_channel = ((2 * KEY_HEADS + head) * _SIZE + d)[None, :]
    both = gl.zeros([ROWS, _SIZE], gl.float32, DEALT)
    value = gl.zeros([ROWS, _SIZE], gl.float32, DEALT)
    if HAS_BIAS:
        both += gl.load(conv_bias + channel, cache_modifier=".cg").to(gl.float32)
        value += gl.load(conv_bias + v_channel, cache_modifier=".cg").to(gl.float32)
    for tap in gl.static_range(1, _TAPS):
        of_tap = conv_weight + (_TAPS - 1 - tap) * TAP_STRIDE
        x = _old_inputs(conv, channel, s, begin, keep, tap, CHANNELS, RING).to(gl.float32)
        tap_weight = gl.load(of_tap + channel * CHANNEL_STRIDE, cache_modifier=".cg")
        both += x * tap_weight.to(gl.float32)
        x = _old_inputs(conv, v_channel, s, begin, keep & is_key, tap, CHANNELS, RING)
        tap_weight = gl.load(of_tap + v_channel * CHANNEL_STRIDE, cache_modifier=".cg")
        value += x.to(gl.float32) * tap_weight.to(gl.float32)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()

    from_both = mixed + key_head * KEY_STEP + (gl.where(is_key, KEY_PART, 0) + d[None, :])
    from_values = mixed + key_head * VALUE_STEP + VALUE_PART + head % GROUP * _SIZE + d[None, :]
    for tap in gl.static_range(_TAPS):
        of_tap = conv_weight + (_TAPS - 1 - tap) * TAP_STRIDE
        from_row = (s - tap) * mixed_stride
        x = gl.load(from_both + from_row, mask=keep & (s >= tap), other=0.0)
        both += x.to(gl.float32) * gl.load(of_tap + channel * CHANNEL_STRIDE).to(gl.float32)
        y = gl.load(from_values + from_row, mask=keep & is_key & (s >= tap), other=0.0)
        value += y.to(gl.float32) * gl.load(of_tap + v_channel * CHANNEL_STRIDE).to(gl.float32)
        if tap == 0:
            # The ring has room for the new rows beside those that are read, so no program waits.
            to_ring = conv + (begin + s) % RING * CHANNELS
            gl.store(to_ring + channel, x, mask=keep & (head % GROUP == 0))
            gl.store(to_ring + v_channel, y, mask=keep & is_key)
    # Rounded where torch's operations round.
    both = _silu(both.to(dtype).to(gl.float32)).to(dtype).to(gl.float32)
    value = _silu(value.to(dtype).to(gl.float32)).to(dtype).to(gl.float32)
    both *= gl.rsqrt(gl.sum(both * both, 1) + _EPSILON)[:, None]
    both *= gl.where(is_key, 1.0, scale)
    both = gl.where(keep, both, 0.0)
    rows = gl.allocate_shared_memory(gl.float32, [ROWS, _SIZE], SHARED)
    rows.store(both)

    # A row a lane. What each lane needs of all rows goes through shared memory.
    ROW: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    a_lane = gl.arange(0, ROWS, gl.BlockedLayout([1], [32], [_WARPS], [0]))
    in_rows = a_lane % BLOCK_S < QUERY_LEN
    from_step = time_step + a_lane % BLOCK_S * time_stride
    step = gl.load(from_step, mask=in_rows, other=0.0).to(gl.float32)
    step = _softplus(step + gl.load(dt_bias + head).to(gl.float32))
    log_decay = -gl.exp(gl.load(a_log + head).to(gl.float32)) * step
    all_decays = gl.allocate_shared_memory(gl.float32, [ROWS], ROW)
    all_decays.store(gl.where(in_rows, log_decay, 0.0))
    beta = gl.load(rate + a_lane % BLOCK_S * rate_stride, mask=in_rows, other=0.0).to(gl.float32)
    all_beta = gl.allocate_shared_memory(gl.float32, [ROWS], ROW)
    # Rounded where torch's operations round.
    all_beta.store((1.0 / (1.0 + gl.exp(-beta))).to(dtype).to(gl.float32))

    of_columns = state.permute((1, 0))
    async_copy.wait_group(0)
    _barrier()
    if count + QUERY_LEN > MOST_PENDING:
        k = gl.arange(0, _PART, gl.SliceLayout(0, LEFT))
        for begins in gl.static_range(0, _SIZE, _PART):
            part = of_columns.slice(begins, _PART, 1)
            kept = part.load(LEFT) * gl.exp(total)
            for j in range(count):
                place = (first + j) % KEPT
                at = gl.exp(total - gl.load(log_decays + place, cache_modifier=".cg"))
                update = gl.load(updates + place * _SIZE + v, cache_modifier=".cg") * at
                old_key = gl.load(keys + place * _SIZE + begins + k, cache_modifier=".cg")
                kept += old_key[None, :] * update[:, None]
            gl.store(matrix + ((begins + k)[None, :] * _SIZE + v[:, None]), kept)
            part.store(kept)
        # What was pending is in the matrix now.
        total *= 0.0
        weight *= 0.0

    # Each row with the pending rows, and with the new ones.
    columns = rows.load(IN_ALL)
    c = gl.arange(0, ROWS, gl.SliceLayout(0, OF_PAIRS))
    since = _since(all_decays, c % BLOCK_S, QUERY_LEN, gl.SliceLayout(0, OF_PAIRS))
    beta = all_beta.load(gl.SliceLayout(0, OF_PAIRS))
    cold = gl.sum(old_keys[:, None, :] * columns[None, :, :], 2)
    cold *= weight[:, None] * gl.exp(since)[None, :]
    pairs = gl.sum(both[:, None, :] * columns[None, :, :], 2)
    i = gl.arange(0, ROWS, gl.SliceLayout(1, OF_PAIRS))
    since_of = _since(all_decays, i % BLOCK_S, QUERY_LEN, gl.SliceLayout(1, OF_PAIRS))[:, None]
    i = i[:, None]
    # A key reads after the rows before its own, a query after its own too.
    reads = (i < c[None, :]) & (c < BLOCK_S)[None, :] | (i <= c[None, :] - BLOCK_S)
    # Masked before exp, because of no row the difference may overflow.
    pairs *= gl.exp(gl.where(reads, since[None, :] - since_of, float("-inf")))
    pairs *= gl.where(c < BLOCK_S, -beta, 1.0)[None, :]
    between = gl.allocate_shared_memory(
        gl.float32, [ROWS, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    )
    between.store(pairs)
    place = (begin + gl.arange(0, ROWS, gl.SliceLayout(1, DEALT))) % KEPT
    gl.store(keys + place[:, None] * _SIZE + d[None, :], both, mask=keep & is_key)
    place = (begin + c) % KEPT
    gl.store(log_decays + place, total + since, mask=c < QUERY_LEN)

    # What each row reads before the new rows' updates.
    sums = gl.zeros([_SIZE, ROWS], gl.float32, SUMS)
    of_keys = rows.permute((1, 0))
    for part in gl.static_range(_SIZE // _PART):
        left = of_columns.slice(part * _PART, _PART, 1).load(LEFT)
        sums = _dot(left, of_keys.slice(part * _PART, _PART, 0).load(RIGHT), sums)
    of_row = gl.arange(0, ROWS, gl.SliceLayout(0, SUMS))
    since = _since(all_decays, of_row % BLOCK_S, QUERY_LEN, gl.SliceLayout(0, SUMS))
    beta = all_beta.load(gl.SliceLayout(0, SUMS))
    sums *= gl.exp(total + since)[None, :]
    sums = _dot(old_updates, gl.convert_layout(cold, RIGHT), sums)
    value = gl.convert_layout(value.trans(), SUMS)
    sums = gl.where((of_row < BLOCK_S)[None, :], (value - sums) * beta[None, :], sums)
    v = gl.arange(0, _SIZE, gl.SliceLayout(1, SUMS))
    for j in gl.static_range(QUERY_LEN):
        update = gl.sum(gl.where((of_row == j)[None, :], sums, 0.0), 1)
        sums += between.slice(j, 1, 0).load(SUMS) * update[:, None]
        gl.store(updates + (begin + j) % KEPT * _SIZE + v, update)

    # Rounded where transformers' module rounds.
    x = sums.to(dtype).to(gl.float32)
    x *= gl.rsqrt(gl.sum(x * x, 0) / _SIZE + epsilon)[None, :]
    gain = gl.load(norm_weight + v)
    x = x.to(dtype).to(gl.float32) * gain.to(gl.float32)[:, None]
    if norm_weight.dtype.element_ty == dtype:
        x = x.to(dtype).to(gl.float32)
    keep = ((of_row >= BLOCK_S) & (of_row < BLOCK_S + QUERY_LEN))[None, :]
    row = (of_row - BLOCK_S)[None, :]
    opened = gl.load(gate + row * gate_stride + v[:, None], mask=keep, other=0.0)
    x *= _silu(opened.to(gl.float32))
    gl.store(out + row * (HEADS * _SIZE) + v[:, None], x.to(dtype), mask=keep)


def takes(rows: DeltaRows) -> bool:
    """Return whether the kernel has these rows' number, sizes and device."""
    net, device = rows.net, rows.query.device
    sizes = net.key_size, net.value_size, net.conv_weight.shape[1]
    return (
        sizes == (SIZE, SIZE, TAPS)
        and rows.num_tokens[1] <= MOST_ROWS
        and _has_tensor_cores(device)
    )


@functools.cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Return whether ``device`` has those that multiply parts of float32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def delta_rule(launch: RecurrentLaunch) -> Tensor:
    """Return what ``triton_recurrent.delta_rule`` does."""
    query_len, most = launch.keywords["QUERY_LEN"], launch.keywords["MOST_PENDING"]
    # Of more rows, more than a few words would go through memory.
    fits_thrice = launch.programs >= MANY_PROGRAMS and query_len <= LEAST_ROWS
    _delta_kernel[(launch.programs,)](
        *launch.arguments,
        **launch.keywords,
        BLOCK_S=max(LEAST_ROWS, triton.next_power_of_2(query_len)),
        BLOCK_P=max(LEAST_PENDING, triton.next_power_of_2(most)),
        num_warps=WARPS,
        maxnreg=FEWER_REGISTERS if fits_thrice else MOST_REGISTERS,
    )
    return launch.out
