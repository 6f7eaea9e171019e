"""The one door between transformers' layers and whoever computes attention.

Importing this module registers the attention implementation ``cgbench`` with transformers. A
forward passes ``attention_call=...`` down to every attention layer, which calls it instead of a
kernel. The name is unknown to transformers' mask registry, so no mask is ever built.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from cgbench.models.recurrent_hook import RecurrentProbe

ATTENTION_NAME = "cgbench"

KvShape = tuple[tuple[int, int], tuple[int, int]]
"""((kv_heads, key size), (kv_heads, value size)) of one layer."""


class AttentionCall(Protocol):
    """Computes one layer's attention, keeping whatever keys and values it wants to keep."""

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """``query [B, Hq, S, D]``, ``key [B, Hkv, S, D]``, ``value [B, Hkv, S, Dv]``, all with
        rotary applied, to ``[B, S, Hq, Dv]``. ``scaling`` multiplies the scores;
        ``sliding_window`` counts the keys seen, the query's own included."""
        ...


def _dispatch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_call: AttentionCall,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    # A compiler is shown the number as a tensor: see engine/operators.py.
    layer_idx: Any = module.layer_number if torch.compiler.is_compiling() else module.layer_idx
    out = attention_call.attend(
        layer_idx,
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
    )
    return out, None


AttentionInterface.register(ATTENTION_NAME, _dispatch)


class ShapeProbe(RecurrentProbe):
    """An ``AttentionCall`` that computes nothing and records each layer's KV or state shape."""

    def __init__(self) -> None:
        super().__init__()
        self.kv_shapes: dict[int, KvShape] = {}
        """By layer_idx."""
        self.num_query_heads: dict[int, int] = {}

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        self.kv_shapes[layer_idx] = (
            (key.shape[1], key.shape[3]),
            (value.shape[1], value.shape[3]),
        )
        self.num_query_heads[layer_idx] = query.shape[1]
        batch, num_heads, length, _ = query.shape
        return torch.zeros(
            batch, length, num_heads, value.shape[3], dtype=query.dtype, device=query.device
        )
