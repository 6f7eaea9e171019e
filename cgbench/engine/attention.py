"""Attention over KV slots: what the engine puts behind transformers' attention interface.

``Prefill`` computes a prompt's own causal attention and stores its keys and values. ``Decode``
stores 1 to 9 new rows a request and attends over each request's live rows, whose number is known
on the device only. A decode backend is one function; ``DECODE_BACKENDS`` names them.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.engine.kv import KvCache
from cgbench.engine.recurrent import DecodeStates, PrefillStates
from cgbench.errors import BadInputError
from cgbench.kernels.attention_input import AttentionInput, LayerKv
from cgbench.kernels.delta_net import DeltaRows
from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.moe.expert_products import Padding


@dataclass
class Rows:
    """Where one forward's tokens live: computed once a forward, used by every layer.

    ``slots [B]`` and ``positions [B, S]``, consecutive in each row. ``masks`` holds what the
    reference backend builds once a forward.
    """

    cache: KvCache
    slots: Tensor
    positions: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @cached_property
    def flat(self) -> Tensor:
        """The tokens' rows in the KV tensors, ``[B * S]``; a kernel computes them itself."""
        return (self.slots[:, None] * self.cache.room + self.positions).view(-1)

    @cached_property
    def request_keys(self) -> Tensor:
        """The rows' requests, as balanced routing knows them: ``[B]``."""
        return self.cache.request_keys[self.slots]

    @cached_property
    def states(self) -> DecodeStates:
        """The rows in the recurrent state, made when a linear-attention layer first asks: a draft
        head has none, and must not move it."""
        assert self.cache.recurrent is not None
        return DecodeStates(self.cache.recurrent, self.slots, self.positions)


def store(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> None:
    """Write keys and values to the rows' places."""
    kv.keys[rows.flat] = qkv.key.transpose(1, 2).flatten(0, 1)
    kv.values[rows.flat] = qkv.value.transpose(1, 2).flatten(0, 1)


DecodeBackend = Callable[[LayerKv, Rows, AttentionInput], Tensor]
"""Stores the new keys and values in the layer's KV, then attends over each row's live ones:
``[B, S, Hq, Dv]``."""


def sdpa_decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
    """The reference: every slot's whole room, masked, through torch's own attention."""
    store(kv, rows, qkv)
    out = F.scaled_dot_product_attention(
        qkv.query,
        _slot_view(kv.keys, rows),
        _slot_view(kv.values, rows),
        attn_mask=_live_mask(rows, qkv.sliding_window),
        scale=qkv.scaling,
        enable_gqa=qkv.is_grouped,
    )
    return out.transpose(1, 2)


def _slot_view(tensor: Tensor, rows: Rows) -> Tensor:
    """``[num_slots * room, H, D]`` to the rows' slots, ``[B, H, room, D]``."""
    by_slot = tensor.view(rows.cache.num_slots, rows.cache.room, *tensor.shape[1:])
    return by_slot[rows.slots].transpose(1, 2)


def _live_mask(rows: Rows, sliding_window: int | None) -> Tensor:
    """``[B, 1, S, room]``: keys at or before the query, and inside its window."""
    if sliding_window not in rows.masks:
        key_positions = torch.arange(rows.cache.room, device=rows.positions.device)
        query_positions = rows.positions[:, None, :, None]
        mask = key_positions <= query_positions
        if sliding_window is not None:
            mask = mask & (key_positions > query_positions - sliding_window)
        rows.masks[sliding_window] = mask
    return rows.masks[sliding_window]


def triton_decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
    """Only live rows are read, the GQA group packed in one tile and split over the keys."""
    # Imported here, for triton is there only beside a CUDA build of torch.
    from cgbench.kernels import triton_attention

    return triton_attention.decode(kv, qkv, rows.slots, rows.positions, rows.cache.room)


DECODE_BACKENDS: dict[str, DecodeBackend] = {"sdpa": sdpa_decode, "triton": triton_decode}


def resolve_backend(name: str, device: torch.device) -> str:
    """The backend that ``--attention NAME`` means on ``device``; ``auto`` takes the fastest, and
    ``package.module:function`` is a ``DecodeBackend`` of the user's own.

    Raises ``BadInputError`` for an unknown name, or one that the device cannot run.
    """
    if ":" in name:
        DECODE_BACKENDS[name] = _imported(name)
        return name
    if name == "auto":
        return "triton" if runs_kernels(device) else "sdpa"
    if name not in DECODE_BACKENDS:
        raise BadInputError(
            f"--attention {name}: unknown; choose auto, {', '.join(sorted(DECODE_BACKENDS))}, "
            "or package.module:function"
        )
    if name == "triton" and device.type != "cuda":
        raise BadInputError("--attention triton needs --device cuda; use --attention sdpa")
    return name


def _imported(name: str) -> DecodeBackend:
    """The function that ``package.module:function`` names, looked for in the current folder too."""
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise BadInputError(f"--attention {name}: must be package.module:function")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), function)
    # The user's own module may raise anything as it is imported.
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise BadInputError(f"--attention {name}: {type(error).__name__}: {why}") from error
    if not callable(found):
        raise BadInputError(f"--attention {name}: is not a function")
    backend: DecodeBackend = found
    return backend


@dataclass(frozen=True, slots=True)
class Decode:
    """An ``AttentionCall`` and ``RecurrentCall`` for verify and draft steps in the rows' slots."""

    rows: Rows
    backend: DecodeBackend
    runs_compiled: bool = True
    """Whether layers that have a compiled form run it."""

    @property
    def request_keys(self) -> Tensor:
        return self.rows.request_keys

    @property
    def padding(self) -> Padding:
        """Rows of the scratch slot, which are there to fill a bucket."""
        rows = self.rows
        return Padding(rows.slots, rows.cache.scratch_slot, rows.positions.shape[1])

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        return self.backend(self.rows.cache.layers[layer_idx], self.rows, qkv)

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        return self.rows.states.delta_rule(layer_idx, rows)


@dataclass(frozen=True, slots=True)
class Prefill:
    """An ``AttentionCall`` and ``RecurrentCall`` for whole prompts from position 0, padded on the
    right.

    Keys past a prompt's end are stored too: they are never read, and decode overwrites them. The
    recurrent state is that at the end, which ``lengths [B]`` says.
    """

    rows: Rows
    lengths: Tensor

    @property
    def request_keys(self) -> Tensor:
        return self.rows.request_keys

    @property
    def states(self) -> PrefillStates:
        assert self.rows.cache.recurrent is not None
        return PrefillStates(self.rows.cache.recurrent, self.rows.slots, self.lengths)

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        return self.states.delta_rule(layer_idx, rows)

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        store(self.rows.cache.layers[layer_idx], self.rows, qkv)
        length, window = qkv.query.shape[2], qkv.sliding_window
        is_windowed = window is not None and window < length
        out = F.scaled_dot_product_attention(
            qkv.query,
            qkv.key,
            qkv.value,
            attn_mask=self._window_mask(length, window) if is_windowed else None,
            is_causal=not is_windowed,
            scale=qkv.scaling,
            enable_gqa=qkv.is_grouped,
        )
        return out.transpose(1, 2)

    def _window_mask(self, length: int, sliding_window: int | None) -> Tensor:
        assert sliding_window is not None
        if sliding_window not in self.rows.masks:
            ones = torch.ones(length, length, dtype=torch.bool, device=self.rows.slots.device)
            self.rows.masks[sliding_window] = ones.tril() & ones.triu(1 - sliding_window)
        return self.rows.masks[sliding_window]
