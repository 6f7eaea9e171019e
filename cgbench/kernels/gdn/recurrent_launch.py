"""Prepare the launch of a gated delta net's kernel: what Triton's and Gluon's share."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgbench.kernels.gdn.delta_net import DeltaRows, LayerState
from cgbench.kernels.gpu import early, launch_keywords


class RecurrentLaunch(NamedTuple):
    """A ``RecurrentLaunch`` holds a kernel's arguments and keywords, and ``out [B, S, H, Dv]``,
    which it fills. There is a program a value head of a request."""

    out: Tensor
    programs: int
    arguments: tuple[Any, ...]
    keywords: dict[str, int]


def recurrent_launch(
    layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> RecurrentLaunch:
    """Return a launch over ``rows``. The rest is as in ``triton_recurrent.delta_rule``."""
    net, device = rows.net, rows.query.device
    batch, query_len = rows.num_tokens
    most, kept = layer.most_pending, layer.keys.shape[2]
    query, key, value = _of_one_tensor(rows.query, rows.key, rows.value)
    gate, rate, time_step = map(_evenly, (rows.gate, rows.rate, rows.time_step))
    assert query_len <= min(most, kept - most) and net.activation == "silu"
    assert positions.is_contiguous() and num_pending.is_contiguous()
    shape = batch, query_len, net.num_heads, net.value_size
    out = torch.empty(shape, dtype=query.dtype, device=device)
    arguments = (
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
        out,
        net.key_size**-0.5,
        net.norm_epsilon,
        *map(_row_stride, (query, gate, rate, time_step)),
    )
    keywords = {
        "KEY_PART": int(key.storage_offset() - query.storage_offset()),
        "VALUE_PART": int(value.storage_offset() - query.storage_offset()),
        "KEY_STEP": key.stride(2),
        "VALUE_STEP": value.stride(2),
        "GATE_STEP": gate.stride(2),
        "RATE_STEP": rate.stride(2),
        "TIME_STEP": time_step.stride(2),
        "QUERY_LEN": query_len,
        "MOST_PENDING": most,
        "KEPT": kept,
        "RING": layer.conv.shape[1],
        "TAP_STRIDE": net.conv_weight.stride(1),
        "CHANNEL_STRIDE": net.conv_weight.stride(0),
        "HAS_BIAS": net.conv_bias is not None,
        "KEY_HEADS": net.num_key_heads,
        "HEADS": net.num_heads,
        "EARLY": early(device),
        **launch_keywords(device),
    }
    return RecurrentLaunch(out, batch * net.num_heads, arguments, keywords)


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
