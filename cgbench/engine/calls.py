"""These calls serve a forward's layers: attention and recurrence over the engine's slots.

``Prefill`` computes a prompt's own causal attention and stores its keys and values. It attends over
FP8 ones as they are kept, like ``Decode``. ``Decode``
stores 1 to 17 new rows a request and attends over each request's live rows. Their number exists on
the device only. ``Decode`` uses a decode backend, which is one function (``engine.backends``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.engine.kv import KvCache
from cgbench.engine.recurrent import DecodeStates, PrefillStates
from cgbench.kernels.attention import (
    AttentionInput,
    LayerKv,
    Masks,
    sink_attention,
    write_kv,
    write_rows,
)
from cgbench.kernels.gdn.delta_net import DeltaRows
from cgbench.kernels.mla import latent_attention, latent_prefill
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.kernels.moe.expert_products import Padding


@dataclass
class Rows:
    """These rows are where one forward's tokens live in the cache.

    They are computed once a forward and used by every layer. ``slots [B]`` and ``positions [B, S]``
    place them. Positions are consecutive in each row. ``masks`` holds what the reference backend
    builds once a forward.
    """

    cache: KvCache
    slots: Tensor
    positions: Tensor
    masks: Masks = field(default_factory=dict)

    @cached_property
    def flat(self) -> Tensor:
        """Return the tokens' rows in the KV tensors, ``[B * S]``. The Triton kernel computes its
        own."""
        return (self.slots[:, None] * self.cache.room + self.positions).view(-1)

    @cached_property
    def request_keys(self) -> Tensor:
        """Return the request that each row belongs to, ``[B]``. Balanced routing draws by it."""
        return self.cache.request_keys[self.slots]

    @cached_property
    def states(self) -> DecodeStates:
        """Return the rows in the recurrent state.

        It is made by verify, or when a linear-attention layer first asks. A draft head has no such
        layer, and must not move the state.
        """
        assert self.cache.recurrent is not None
        return DecodeStates(self.cache.recurrent, self.slots, self.positions)


def store(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> AttentionInput:
    """Write keys and values to the rows' places in the layer's KV, and return them as kept."""
    return write_kv(kv, rows.slots, rows.positions, rows.flat, qkv)


def keep(kv: LayerKv, rows: Rows, key: Tensor, value: Tensor) -> None:
    """Write ``key`` and ``value [B, H, S, D]`` of rows that attend to nothing themselves."""
    store(kv, rows, AttentionInput(key, key, value, scaling=1.0, sliding_window=None))


DecodeBackend = Callable[[LayerKv, Rows, AttentionInput], Tensor]
"""A decode backend stores the new keys and values in the layer's KV, then attends.

It attends over each row's live keys and returns ``[B, S, Hq, Dv]``.
"""


@dataclass(frozen=True, slots=True)
class Decode:
    """This call serves verify and draft steps in the rows' slots.

    It is an ``AttentionCall`` and a ``RecurrentCall``.
    """

    rows: Rows
    backend: DecodeBackend
    runs_compiled: bool = True
    """Layers that have a compiled form run it if this is true."""

    @property
    def request_keys(self) -> Tensor:
        """Return the request that each row belongs to, ``[B]``."""
        return self.rows.request_keys

    @property
    def padding(self) -> Padding:
        """Return which rows are padding: those of the scratch slot, which fill a bucket."""
        rows = self.rows
        return Padding(rows.slots, rows.cache.scratch_slot, rows.positions.shape[1])

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        return self.backend(self.rows.cache.layers[layer_idx], self.rows, qkv)

    def keep(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        keep(self.rows.cache.layers[layer_idx], self.rows, key, value)

    @property
    def keeps_latents(self) -> bool:
        return self.rows.cache.keeps_latents

    def attend_latent(self, layer_idx: int, new: LatentInput) -> Tensor:
        rows = self.rows
        latents = rows.cache.layers[layer_idx].keys
        places = rows.slots, rows.positions, rows.cache.room
        return latent_attention.decode(latents, new, *places, rows.masks)

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        return self.rows.states.delta_rule(layer_idx, rows)


@dataclass(frozen=True, slots=True)
class Prefill:
    """This call serves whole prompts from position 0, padded on the right.

    It is an ``AttentionCall`` and a ``RecurrentCall``. Keys past a prompt's end are stored too.
    They are never read, and decode overwrites them. The recurrent state is that at each prompt's
    end, ``lengths [B]``.
    """

    rows: Rows
    lengths: Tensor

    @property
    def request_keys(self) -> Tensor:
        """Return the request that each row belongs to, ``[B]``."""
        return self.rows.request_keys

    @property
    def states(self) -> PrefillStates:
        """Return the prompts' rows in the recurrent state."""
        assert self.rows.cache.recurrent is not None
        return PrefillStates(self.rows.cache.recurrent, self.rows.slots, self.lengths)

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        return self.states.delta_rule(layer_idx, rows)

    @property
    def keeps_latents(self) -> bool:
        return self.rows.cache.keeps_latents

    def attend_latent(self, layer_idx: int, new: LatentInput) -> Tensor:
        write_rows(self.rows.cache.layers[layer_idx].keys, self.rows.flat, new.latent)
        return latent_prefill.prefill(
            new, self._window_mask(new.query.shape[2], new.sliding_window)
        )

    def keep(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        keep(self.rows.cache.layers[layer_idx], self.rows, key, value)

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        qkv = store(self.rows.cache.layers[layer_idx], self.rows, qkv)
        if qkv.sinks is not None:
            return prefill_with_sinks(qkv).transpose(1, 2)
        mask = self._window_mask(qkv.query.shape[2], qkv.sliding_window)
        out = F.scaled_dot_product_attention(
            qkv.query,
            qkv.key,
            qkv.value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=qkv.scaling,
            enable_gqa=qkv.is_grouped,
        )
        return out.transpose(1, 2)

    def _window_mask(self, length: int, sliding_window: int | None) -> Tensor | None:
        """Return the mask of a window ``[S, S]``, or None if every earlier row is within it."""
        if sliding_window is None or sliding_window >= length:
            return None
        if sliding_window not in self.rows.masks:
            ones = torch.ones(length, length, dtype=torch.bool, device=self.rows.slots.device)
            self.rows.masks[sliding_window] = ones.tril() & ones.triu(1 - sliding_window)
        return self.rows.masks[sliding_window]


SCORES_AT_ONCE = 1 << 26
"""Of one prefill with sinks, in float32: a quarter of a gigabyte."""


def prefill_with_sinks(qkv: AttentionInput) -> Tensor:
    """Causal attention with sinks over whole prompts, ``[B, Hq, S, Dv]``, some queries at a time:
    torch's own attention knows no sinks, and all scores at once would not fit."""
    batch, num_heads, length, _ = qkv.query.shape
    step = max(1, SCORES_AT_ONCE // (batch * num_heads * length))
    parts = []
    for start in range(0, length, step):
        end = min(start + step, length)
        first = 0 if qkv.sliding_window is None else max(0, start - qkv.sliding_window + 1)
        queries = torch.arange(start, end, device=qkv.query.device)[:, None]
        keys = torch.arange(first, end, device=qkv.query.device)
        mask = keys <= queries
        if qkv.sliding_window is not None:
            mask &= keys > queries - qkv.sliding_window
        part = qkv._replace(query=qkv.query[:, :, start:end])
        seen = qkv.key[:, :, first:end], qkv.value[:, :, first:end]
        parts.append(sink_attention(part, *seen, mask[None, None]))
    return torch.cat(parts, dim=2)
