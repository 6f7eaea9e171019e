"""Define decode attention in torch, and the tensors that it takes.

The Triton form is ``triton_attention``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.kv_values import KvScales

Masks = dict[int | None, Tensor]
"""These are the masks of a forward, by the sliding window of the layers that share one."""


@dataclass(frozen=True, slots=True)
class LayerKv:
    """A ``LayerKv`` holds one layer's keys and values of all slots.

    They are ``keys [num_slots * room, kv_heads, D]`` and
    ``values [num_slots * room, kv_heads, Dv]``. ``scales`` are there if they are in FP8.
    """

    keys: Tensor
    values: Tensor
    scales: KvScales | None = None


class AttentionInput(NamedTuple):
    """An attention input is what one layer's attention is computed from, with rotary applied.

    It has ``query [B, Hq, S, D]``, ``key [B, Hkv, S, D]`` and ``value [B, Hkv, S, Dv]``.
    ``scaling`` multiplies the scores. ``sliding_window`` counts the keys seen, the query's own
    included. None means all. ``sinks [Hq]`` are scores of keys without a value, one a head. Every
    query sees its head's, and it takes a part of the weight. Most models have none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sliding_window: int | None
    sinks: Tensor | None = None

    @property
    def is_grouped(self) -> bool:
        """Return whether query heads share key and value heads."""
        return self.query.shape[1] != self.key.shape[1]


def sdpa(
    kv: LayerKv,
    qkv: AttentionInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    masks: Masks | None = None,
) -> Tensor:
    """Attend over each slot's rows 0..position by torch's attention, to ``[B, S, Hq, Dv]``.

    ``slots [B]`` have ``room`` rows each, and the queries are at ``positions [B, S]``. The whole
    room is read, masked. The new rows must be in ``kv`` already. The layers of one forward may
    share ``masks``, so that each is made once.
    """
    masks = {} if masks is None else masks
    window = qkv.sliding_window
    if window not in masks:
        masks[window] = live_mask(positions, room, window)
    keys, values = slot_view(kv.keys, slots, room), slot_view(kv.values, slots, room)
    if qkv.sinks is not None:
        out = sink_attention(qkv, keys, values, masks[window])
    else:
        out = F.scaled_dot_product_attention(
            qkv.query,
            keys,
            values,
            attn_mask=masks[window],
            scale=qkv.scaling,
            enable_gqa=qkv.is_grouped,
        )
    return out.transpose(1, 2)


def sink_attention(qkv: AttentionInput, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attend with sinks: return ``[B, Hq, S, Dv]`` for the queries of ``qkv``.

    They see ``keys [B, Hkv, K, D]`` and ``values [B, Hkv, K, Dv]`` where ``mask``, of ``[B or 1, 1,
    S, K]``, is true. The softmax has one score more, the head's sink, whose weight is then left
    out. Sums are in float32. Source: gpt-oss and MiMo-V2-Flash in transformers.
    """
    assert qkv.sinks is not None
    batch, num_heads, length, _ = qkv.query.shape
    kv_heads = keys.shape[1]
    # [B, Hkv, group, S, K]: query heads that share keys are neighbours.
    queries = qkv.query.float().unflatten(1, (kv_heads, num_heads // kv_heads))
    scores = queries @ keys.float()[:, :, None].transpose(-1, -2) * qkv.scaling
    scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
    sinks = qkv.sinks.float().view(1, kv_heads, -1, 1, 1).expand(batch, -1, -1, length, 1)
    weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    out = weights @ values.float()[:, :, None]
    return out.flatten(1, 2).to(values.dtype)


def write_rows(cache: Tensor, rows: Tensor, new: Tensor) -> None:
    """Write ``new [B, heads, S, D]`` to ``rows [B * S]`` of ``cache [slots * room, heads, D]``."""
    cache[rows] = new.transpose(1, 2).flatten(0, 1)


def slot_view(tensor: Tensor, slots: Tensor, room: int) -> Tensor:
    """Return the rows of ``slots`` in a KV tensor ``[num_slots * room, H, D]``, as
    ``[B, H, room, D]``."""
    return tensor.view(-1, room, *tensor.shape[1:])[slots].transpose(1, 2)


def live_mask(positions: Tensor, room: int, sliding_window: int | None) -> Tensor:
    """Return a mask ``[B, 1, S, room]`` of the keys at or before the query, inside its window."""
    key_positions = torch.arange(room, device=positions.device)
    query_positions = positions[:, None, :, None]
    mask = key_positions <= query_positions
    if sliding_window is not None:
        mask = mask & (key_positions > query_positions - sliding_window)
    return mask
