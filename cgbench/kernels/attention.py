"""Define decode attention in torch, and the tensors that it takes.

The Triton form is ``triton_attention``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.kv_values import KvScales, quantised_rows, row_scales, row_values

Masks = dict[object, Tensor]
"""These are the masks of a forward, by what the layers that share one have alike.

That is the sliding window, and whether a query sees the rows after it.
"""


@dataclass(frozen=True, slots=True)
class LayerKv:
    """A ``LayerKv`` holds one layer's keys and values of all slots.

    They are ``keys [num_slots * room, kv_heads, D]`` and
    ``values [num_slots * room, kv_heads, Dv]``. ``scales`` are there if they are in FP8.
    """

    keys: Tensor
    values: Tensor
    scales: KvScales | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, those of the scales too."""
        named = {"keys": self.keys, "values": self.values}
        if self.scales is None:
            return named
        return named | {"key_scales": self.scales.keys, "value_scales": self.scales.values}

    def of_slots(self, num_slots: int) -> dict[str, Tensor]:
        """Return what is kept of each token, as views ``[num_slots, room, kv_heads, ...]``.

        Scales have a last dimension of 1. Those of a whole layer are no token's, and left out.
        """
        named = {
            name: tensor.unflatten(0, (num_slots, tensor.shape[0] // num_slots))
            for name, tensor in (("keys", self.keys), ("values", self.values))
        }
        if self.scales is None or not self.scales.are_by_token:
            return named
        scales = {"key_scales": self.scales.keys, "value_scales": self.scales.values}
        return named | {name: each.transpose(1, 2)[..., None] for name, each in scales.items()}


class AttentionInput(NamedTuple):
    """An attention input is what one layer's attention is computed from, with rotary applied.

    It has ``query [B, Hq, S, D]``, ``key [B, Hkv, S, D]`` and ``value [B, Hkv, S, Dv]``.
    ``scaling`` multiplies the scores. ``sliding_window`` counts the keys seen, the query's own
    included. None means all. ``sinks [Hq]`` are scores of keys without a value, one a head. Every
    query sees its head's, and it takes a part of the weight. Most models have none. Without
    ``is_causal`` a query sees the later rows of its call too, as in a parallel drafter's block.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sliding_window: int | None
    sinks: Tensor | None = None
    is_causal: bool = True

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

    Without ``qkv.is_causal`` it is the last query's position for every query.

    ``slots [B]`` have ``room`` rows each, and the queries are at ``positions [B, S]``. The whole
    room is read, masked. The new rows must be in ``kv`` already. The layers of one forward may
    share ``masks``, so that each is made once.
    """
    masks = {} if masks is None else masks
    window = qkv.sliding_window
    kind = window, qkv.is_causal
    if kind not in masks:
        make = live_mask if qkv.is_causal else block_mask
        masks[kind] = make(positions, room, window)
    keys, values = live_rows(kv, slots, room, qkv.query.dtype)
    if qkv.sinks is not None:
        out = sink_attention(qkv, keys, values, masks[kind])
    else:
        out = F.scaled_dot_product_attention(
            qkv.query,
            keys,
            values,
            attn_mask=masks[kind],
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


def write_kv(
    kv: LayerKv, slots: Tensor, positions: Tensor, rows: Tensor, qkv: AttentionInput
) -> AttentionInput:
    """Write the new keys and values, and return the input with them as they are kept.

    They go to ``rows [B * S]``, which are ``positions [B, S]`` of ``slots [B]``. In FP8 they are
    the values times their scales (``fp8.kv_values``).
    """
    if kv.scales is None:
        write_rows(kv.keys, rows, qkv.key)
        write_rows(kv.values, rows, qkv.value)
        return qkv
    key = _write_fp8(kv.keys, kv.scales.keys, slots, positions, rows, qkv.key)
    value = _write_fp8(kv.values, kv.scales.values, slots, positions, rows, qkv.value)
    return qkv._replace(key=key, value=value)


def _write_fp8(
    cache: Tensor, scales: Tensor, slots: Tensor, positions: Tensor, rows: Tensor, new: Tensor
) -> Tensor:
    by_token = scales.dim() == 3
    own = row_scales(new) if by_token else scales
    stored = quantised_rows(new, own)
    write_rows(cache, rows, stored)
    if by_token:
        # [B, heads, S] to the places [B, S] of each head.
        scales[slots[:, None], :, positions] = own.transpose(1, 2)
    return row_values(stored, own, new.dtype)


def live_rows(kv: LayerKv, slots: Tensor, room: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the keys and values of ``slots [B]``, ``[B, H, room, D]`` in ``dtype``."""
    keys, values = slot_view(kv.keys, slots, room), slot_view(kv.values, slots, room)
    if kv.scales is None:
        return keys, values
    of_keys, of_values = kv.scales
    if kv.scales.are_by_token:
        of_keys, of_values = of_keys[slots], of_values[slots]
    return row_values(keys, of_keys, dtype), row_values(values, of_values, dtype)


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


def block_mask(positions: Tensor, room: int, sliding_window: int | None) -> Tensor:
    """Return a mask ``[B, 1, S, room]`` of the keys at or before the last query, of any query.

    A window ends so far before the query itself.
    """
    key_positions = torch.arange(room, device=positions.device)
    mask = (key_positions <= positions[:, None, -1:, None]).expand(-1, -1, positions.shape[1], -1)
    if sliding_window is not None:
        mask = mask & (key_positions > positions[:, None, :, None] - sliding_window)
    return mask
