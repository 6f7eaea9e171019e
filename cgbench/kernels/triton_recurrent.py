"""Compute one verify of a gated delta net's recurrence, in two Triton kernels a layer.

The first is the convolution. The delta rule is the second, and stands here. Its floor is one read
and one write of the matrices. In torch's operations it is some fifty kernels of a microsecond or
two each.

``engine.recurrent`` describes what is computed, and what is kept of a row. Here the rule runs row
by row, over a matrix that stays in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.counters import arrivals
from cgbench.kernels.delta_rule import DeltaRows, LayerState
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.triton_convolution import convolved

VALUES_A_PROGRAM = 16
"""A program takes this many columns of a head's matrix, with one warp.

So no warp waits for another.
"""

MAX_HEADS = 1 << 18
"""One call takes at most this many value heads, of all requests together."""

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
def _accept_pending(
    state,
    keys,
    updates,
    log_decays,
    count,
    in_key,
    in_value,
    KEPT: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
):
    # As ``delta_rule.advanced``. A row past ``count`` is not read, whatever lies there.
    total = tl.load(log_decays + count - 1, mask=count > 0, other=0.0)
    state *= tl.exp(total)
    for j in tl.static_range(KEPT):
        is_pending = j < count
        log_decay = tl.load(log_decays + j, mask=is_pending, other=0.0)
        weight = tl.where(is_pending, tl.exp(total - log_decay), 0.0)
        key = tl.load(keys + j * KEY_DIM, mask=in_key & is_pending, other=0.0)
        update = tl.load(updates + j * VALUE_DIM, mask=in_value & is_pending, other=0.0)
        state += (key * weight)[:, None] * update[None, :]
    return state


@triton.jit(do_not_specialize=["rate_stride", "time_stride"])  # type: ignore[untyped-decorator]
def _delta_kernel(
    convolved,
    rate,
    time_step,
    a_log,
    dt_bias,
    slots,
    positions,
    num_pending,
    matrix,
    keys,
    updates,
    log_decays,
    out,
    arrived,
    scale,
    rate_stride,
    time_stride,
    QUERY_LEN: tl.constexpr,
    KEPT: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILES: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    b = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(1)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_K)
    v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    in_rows = s < QUERY_LEN
    in_key = d < KEY_DIM
    in_value = v < VALUE_DIM
    of_head = tl.load(slots + b).to(tl.int64) * HEADS + head
    keys += of_head * KEPT * KEY_DIM
    updates += of_head * KEPT * VALUE_DIM
    log_decays += of_head * KEPT

    matrix += (of_head * KEY_DIM + d[:, None]) * VALUE_DIM + v[None, :]
    in_matrix = in_key[:, None] & in_value[None, :]
    # Nothing came before a request's first row. So a padded row computes the same whatever lies
    # here.
    is_first = tl.load(positions + b * QUERY_LEN) == 0
    state = tl.load(matrix, mask=in_matrix & (is_first == 0), other=0.0)

    row = b.to(tl.int64) * QUERY_LEN + s
    from_row = convolved + row[:, None] * (2 * KEY_HEADS * KEY_DIM + HEADS * VALUE_DIM)
    from_key = from_row + head // (HEADS // KEY_HEADS) * KEY_DIM + d[None, :]
    in_keys = in_rows[:, None] & in_key[None, :]
    in_values = in_rows[:, None] & in_value[None, :]
    query = tl.load(from_key, mask=in_keys, other=0.0).to(tl.float32)
    key = tl.load(from_key + KEY_HEADS * KEY_DIM, mask=in_keys, other=0.0).to(tl.float32)
    from_value = from_row + 2 * KEY_HEADS * KEY_DIM + head * VALUE_DIM + v[None, :]
    value = tl.load(from_value, mask=in_values, other=0.0).to(tl.float32)
    step = tl.load(time_step + row * time_stride + head, mask=in_rows, other=0.0).to(tl.float32)
    step = _softplus(step + tl.load(dt_bias + head).to(tl.float32))
    log_decay = tl.where(in_rows, -tl.exp(tl.load(a_log + head).to(tl.float32)) * step, 0.0)
    beta = tl.sigmoid(
        tl.load(rate + row * rate_stride + head, mask=in_rows, other=0.0).to(tl.float32)
    )
    # Rounded where torch's operations round.
    beta = beta.to(convolved.dtype.element_ty).to(tl.float32)
    query *= tl.rsqrt(tl.sum(query * query, 1) + _EPSILON)[:, None] * scale
    key *= tl.rsqrt(tl.sum(key * key, 1) + _EPSILON)[:, None]
    query_key = tl.sum(query * key, 1)

    count = tl.load(num_pending + b)
    state = _accept_pending(
        state, keys + d, updates + v, log_decays, count, in_key, in_value, KEPT, KEY_DIM, VALUE_DIM
    )
    tl.store(matrix, state, mask=in_matrix)
    # What was pending has been read by all of this program before its arrival is counted.
    tl.debug_barrier()
    is_last = True
    if TILES > 1:
        is_last = tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == TILES - 1

    read = tl.zeros([BLOCK_S, BLOCK_V], tl.float32)
    added = tl.zeros([BLOCK_S, BLOCK_V], tl.float32)
    for i in tl.static_range(QUERY_LEN):
        here = s == i
        q = tl.sum(tl.where(here[:, None], query, 0.0), 0)[:, None]
        k = tl.sum(tl.where(here[:, None], key, 0.0), 0)[:, None]
        u = tl.sum(tl.where(here[:, None], value, 0.0), 0)
        state *= tl.exp(tl.sum(tl.where(here, log_decay, 0.0), 0))
        u = (u - tl.sum(state * k, 0)) * tl.sum(tl.where(here, beta, 0.0), 0)
        # It is of the state before the update, so that one reduction does not wait for the other.
        o = tl.sum(state * q, 0) + u * tl.sum(tl.where(here, query_key, 0.0), 0)
        state += k * u[None, :]
        read = tl.where(here[:, None], o[None, :], read)
        added = tl.where(here[:, None], u[None, :], added)

    to_out = out + (row[:, None] * HEADS + head) * VALUE_DIM + v[None, :]
    tl.store(to_out, read.to(out.dtype.element_ty), mask=in_values)
    tl.store(updates + s[:, None] * VALUE_DIM + v[None, :], added, mask=in_values)
    if is_last:
        # All programs of the head read these, so they are written when the last one has.
        tl.store(keys + s[:, None] * KEY_DIM + d[None, :], key, mask=in_keys)
        tl.store(log_decays + s, tl.cumsum(log_decay, 0), mask=in_rows)
        if TILES > 1:
            tl.store(arrived + tl.program_id(0), 0)


def delta_rule(
    layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> Tensor:
    """Return what ``rows`` read of the state, ``[B, S, H, Dv]``.

    They are in ``slots [B]`` at ``positions [B, S]``. They come after the ``num_pending [B]`` rows
    that the state has yet to take up. The state is left before them.
    """
    net, device = rows.net, rows.mixed.device
    batch, query_len, _ = rows.mixed.shape
    kept = layer.keys.shape[2]
    values = min(VALUES_A_PROGRAM, triton.next_power_of_2(net.value_size))
    tiles = triton.cdiv(net.value_size, values)
    rate, time_step = _heads_together(rows.rate), _heads_together(rows.time_step)
    assert query_len <= kept
    assert batch * net.num_heads <= MAX_HEADS and num_pending.is_contiguous()
    shape = (batch, query_len, net.num_heads, net.value_size)
    out = torch.empty(shape, dtype=rows.mixed.dtype, device=device)
    _delta_kernel[(batch * net.num_heads, tiles)](
        convolved(layer, rows, slots, positions),
        rate,
        time_step,
        net.a_log,
        net.dt_bias,
        slots,
        positions,
        num_pending,
        layer.matrix,
        layer.keys,
        layer.updates,
        layer.log_decays,
        out,
        arrivals("delta_rule", MAX_HEADS, device),
        net.key_size**-0.5,
        rate.stride(0),
        time_step.stride(0),
        QUERY_LEN=query_len,
        KEPT=kept,
        KEY_HEADS=net.num_key_heads,
        HEADS=net.num_heads,
        KEY_DIM=net.key_size,
        VALUE_DIM=net.value_size,
        BLOCK_S=triton.next_power_of_2(query_len),
        BLOCK_K=triton.next_power_of_2(net.key_size),
        BLOCK_V=values,
        TILES=tiles,
        EARLY=early(device),
        num_warps=1,
        **launch_keywords(device),
    )
    return out


def _heads_together(each: Tensor) -> Tensor:
    """Return ``each [B, S, num_heads]`` as ``[B * S, num_heads]``, a row's heads side by side.

    It copies only if every key head serves one value head, as Qwen3-Next projects then.
    """
    rows = each.flatten(0, 1)
    return rows if rows.stride(1) == 1 else rows.contiguous()
