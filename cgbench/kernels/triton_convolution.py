"""Compute the short convolution of a gated delta net over a verify's rows, in Triton.

The kernel does everything between the projections and the delta rule. It puts the ring's newest
inputs in front of the rows, and the rows into the ring. Then it applies the convolution and its
activation. See ``engine.recurrent``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.delta_rule import DeltaRows, LayerState
from cgbench.kernels.gpu import early, launch_keywords

CHANNELS_A_PROGRAM = 128


@triton.jit  # type: ignore[untyped-decorator]
def _convolve_kernel(
    mixed,
    ring,
    weight,
    bias,
    slots,
    positions,
    out,
    mixed_stride,
    QUERY_LEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    RING: tl.constexpr,
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    b = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    s = tl.arange(0, BLOCK_S)[:, None]
    is_channel = c < CHANNELS
    keep = (s < QUERY_LEN) & is_channel
    begin = tl.load(positions + b * QUERY_LEN)
    of_ring = ring + tl.load(slots + b).to(tl.int64) * RING * CHANNELS + c
    first_row = b.to(tl.int64) * QUERY_LEN
    from_rows = mixed + first_row * mixed_stride + c
    acc = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    if HAS_BIAS:
        acc += tl.load(bias + c, mask=is_channel, other=0.0).to(tl.float32)
    for tap in tl.static_range(TAPS - 1):
        row = s + tap - (TAPS - 1)
        new = tl.load(from_rows + row * mixed_stride, mask=keep & (row >= 0), other=0.0)
        # The ring has room for the new rows beside those read here, so no program waits.
        position = begin + row
        is_old = (row < 0) & (position >= 0)
        old = tl.load(of_ring + position % RING * CHANNELS, mask=keep & is_old, other=0.0)
        acc += (new + old).to(tl.float32) * tl.load(weight + c * TAPS + tap, mask=is_channel)
    new = tl.load(from_rows + s * mixed_stride, mask=keep, other=0.0)
    acc += new.to(tl.float32) * tl.load(weight + c * TAPS + TAPS - 1, mask=is_channel)
    tl.store(of_ring + (begin + s) % RING * CHANNELS, new, mask=keep)
    # Rounded where torch's operations round.
    acc = acc.to(out.dtype.element_ty).to(tl.float32)
    acc = acc * tl.sigmoid(acc)
    tl.store(out + (first_row + s) * CHANNELS + c, acc.to(out.dtype.element_ty), mask=keep)


def convolved(layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor) -> Tensor:
    """Return ``rows.mixed [B, S, C]`` after the convolution and its activation.

    The rows enter the ring.
    """
    weight, bias = rows.net.conv_weight, rows.net.conv_bias
    batch, query_len, channels = rows.mixed.shape
    # Rows of a packed projection are parts of wider ones.
    mixed = rows.mixed.flatten(0, 1)
    assert mixed.stride(1) == 1 and weight.is_contiguous()
    assert positions.is_contiguous() and rows.net.activation == "silu"
    out = torch.empty(rows.mixed.shape, dtype=mixed.dtype, device=mixed.device)
    _convolve_kernel[(batch, triton.cdiv(channels, CHANNELS_A_PROGRAM))](
        mixed,
        layer.conv,
        weight,
        weight if bias is None else bias,
        slots,
        positions,
        out,
        mixed.stride(0),
        QUERY_LEN=query_len,
        CHANNELS=channels,
        RING=layer.conv.shape[1],
        TAPS=weight.shape[1],
        HAS_BIAS=bias is not None,
        BLOCK_S=triton.next_power_of_2(query_len),
        BLOCK_C=CHANNELS_A_PROGRAM,
        EARLY=early(mixed.device),
        num_warps=1,
        **launch_keywords(mixed.device),
    )
    return out
