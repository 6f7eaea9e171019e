"""Hand every attention call of transformers' layers to an object that computes it.

Importing this module registers the attention implementation ``cgbench`` with transformers. A
forward passes ``attention_call=...`` down to every attention layer, which calls it instead of a
kernel. The name is unknown to transformers' mask registry, so no mask is ever built.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from cgbench.errors import UnsupportedModelError
from cgbench.kernels.attention import AttentionInput
from cgbench.kernels.expert_draw import ExpertShape
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.models.recurrent_hook import RecurrentProbe

ATTENTION_NAME = "cgbench"

KvShape = tuple[tuple[int, int], tuple[int, int]]
"""The KV shape of one layer is ((kv_heads, key size), (kv_heads, value size)). A layer that keeps
latents has one head. Its value size is 0, because the value is a part of the key."""


def is_latent(shape: KvShape) -> bool:
    """Return whether a layer of ``shape`` keeps latents."""
    return shape[1][1] == 0


class AttentionCall(Protocol):
    """An ``AttentionCall`` computes the attention of each layer in a forward.

    It keeps whatever keys and values it wants to keep.
    """

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        """Return the attention output ``[B, S, Hq, Dv]`` of layer ``layer_idx``."""
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
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if attention_mask is not None:
        # transformers makes no mask for this implementation, so the model has made its own.
        raise UnsupportedModelError(
            f"{type(module).__name__}: makes an attention mask of its own, which is not supported"
        )
    if s_aux is None and getattr(module, "sinks", None) is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__}: does not tell its attention of its sinks"
        )
    # A compiler is shown the number as a tensor (see compile/operators.py).
    layer_idx: Any = module.layer_number if torch.compiler.is_compiling() else module.layer_idx
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if hasattr(module, "latent_weights"):
        if s_aux is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__}: latent attention with sinks is not supported"
            )
        hooked: Any = module
        if getattr(attention_call, "keeps_latents", False):
            new = LatentInput(query, key, hooked.latent_weights(), scaling, sliding_window)
            keeper: Any = attention_call
            return keeper.attend_latent(layer_idx, new), None
        key, value = hooked.expanded(key)
    is_causal = not getattr(module, "sees_block", False)
    qkv = AttentionInput(query, key, value, scaling, sliding_window, s_aux, is_causal)
    return attention_call.attend(layer_idx, qkv), None


AttentionInterface.register(ATTENTION_NAME, _dispatch)


class ShapeProbe(RecurrentProbe):
    """A ``ShapeProbe`` is an ``AttentionCall`` that records each layer's KV or state shape.

    It computes nothing. It raises ``UnsupportedModelError`` if a layer attends twice, because a
    layer has room for one set of keys.
    """

    def __init__(self, *, keeps_latents: bool = True) -> None:
        """``keeps_latents``: record what layers of latent attention keep in the absorbed form."""
        super().__init__()
        self.keeps_latents = keeps_latents
        self.expert_shapes: dict[int, ExpertShape] = {}
        """The shape of each mixture of experts, by layer."""
        self.kv_shapes: dict[int, KvShape] = {}
        """The shape of each attention layer's keys and values, by layer_idx."""
        self.num_query_heads: dict[int, int] = {}
        self.windows: dict[int, int | None] = {}

    @property
    def num_kv_heads(self) -> dict[int, int]:
        """Return how many heads of keys and values each attention layer keeps, by layer_idx."""
        return {layer: keys[0] for layer, (keys, _) in self.kv_shapes.items()}

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        _, kv_heads, _, value_dim = qkv.value.shape
        key_dim = qkv.query.shape[3]
        shape = (kv_heads, key_dim), (kv_heads, value_dim)
        return self._noted(layer_idx, qkv.query, shape, value_dim, qkv.sliding_window)

    def keep(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        """Record nothing, because a layer that keeps rows attends too."""

    def attend_latent(self, layer_idx: int, new: LatentInput) -> Tensor:
        """Record what the layer keeps, and return zeros of its output's shape."""
        shape = (1, new.latent.shape[3]), (1, 0)
        return self._noted(layer_idx, new.query, shape, new.weights.value_size, new.sliding_window)

    def _noted(
        self, layer_idx: int, query: Tensor, shape: KvShape, value_dim: int, window: int | None
    ) -> Tensor:
        if layer_idx in self.kv_shapes:
            raise UnsupportedModelError(
                f"layer {layer_idx} attends more than once in a forward, which is not supported"
            )
        batch, num_heads, length, _ = query.shape
        self.windows[layer_idx] = window
        self.kv_shapes[layer_idx] = shape
        self.num_query_heads[layer_idx] = num_heads
        return query.new_zeros(batch, length, num_heads, value_dim)
