"""Every latent attention layer of transformers hands its latents on through this hook.

transformers' layers compute a token's latent and rotary key, and expand them to every head's key
and value just before attention. ``hook_latent_layers`` has that step hand on what it was given.
``attention_hook`` then passes the latents to a forward's call that keeps them, or expands them
if the call keeps keys and values. All else, rotary included, stays the layer's own.
"""

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cgbench.kernels.mla.latent_attention import LatentInput, has_kernels
from cgbench.kernels.mla.latent_weights import LatentWeights
from cgbench.models.attention_hook import ATTENTION_NAME
from cgbench.models.quantised.scaled_modules import scales_of

_PARTS = ("expand_kv", "kv_b_proj", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")
"""What transformers' latent attention modules have, since release 5.17."""


class LatentCall(Protocol):
    """A ``LatentCall`` computes the latent attention of a forward, and may keep the latents."""

    @property
    def keeps_latents(self) -> bool:
        """Return whether the call is given latents. Otherwise it is given keys and values."""
        ...

    def attend_latent(self, layer_idx: int, new: LatentInput) -> Tensor:
        """Attend over the latents of layer ``layer_idx``, to ``[B, S, H, value_size]``."""
        ...


def hook_latent_layers(module: nn.Module) -> None:
    """Route the latents of every latent attention layer in ``module`` through its forward's call.

    Layers that expand with a bias are left alone: what the bias adds is in no latent.
    """
    for part in list(module.modules()):
        if is_latent_attention(part) and not hasattr(part, "latent_weights"):
            kind: Any = type(part)
            part.__class__ = _hooked_class(kind)


def is_latent_attention(module: nn.Module) -> bool:
    """Return whether ``module`` is latent attention whose latents can be handed on."""
    if not all(hasattr(module, name) for name in _PARTS):
        return False
    expansion: Any = module.kv_b_proj
    return expansion.bias is None


def latent_path(*modules: nn.Module | None) -> str:
    """Return the name of what runs the latent attention of ``modules`` in decode steps.

    It is ``kernels`` or ``torch``, joined by "and" if layers differ.
    """
    found = {
        "kernels" if has_kernels(part.latent_weights()) else "torch"  # type: ignore[operator]
        for module in modules
        if module is not None
        for part in module.modules()
        if hasattr(part, "latent_weights")
    }
    return " and ".join(sorted(found))


@cache
def _hooked_class(plain: Any) -> type[nn.Module]:
    """Return a subclass of ``plain`` that hands latents on if attention is ``cgbench``'s."""

    class Hooked(plain):  # type: ignore[misc]
        def expand_kv(self, content: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
            if self.config._attn_implementation != ATTENTION_NAME:
                expanded: tuple[Tensor, Tensor] = super().expand_kv(content, rotary)
                return expanded
            return torch.cat([content, rotary], dim=-1), content

        def expanded(self, latent: Tensor) -> tuple[Tensor, Tensor]:
            """Return the layer's own keys and values of ``latent [B, 1, S, rank + R]``."""
            rank = self.kv_lora_rank
            found: tuple[Tensor, Tensor] = super().expand_kv(latent[..., :rank], latent[..., rank:])
            return found

        def latent_weights(self) -> LatentWeights:
            """Return the matrix that expands, as this rank holds it."""
            scales = scales_of(self.kv_b_proj, "weight") or (None, None)
            return LatentWeights(
                self.kv_b_proj.weight, self.qk_nope_head_dim, self.v_head_dim, *scales
            )

    Hooked.__name__ = Hooked.__qualname__ = plain.__name__
    return Hooked
