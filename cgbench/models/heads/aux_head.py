"""What heads have in common that read auxiliary hidden states of the target."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cgbench.models.heads.head import DraftHead

if TYPE_CHECKING:
    from cgbench.models.target import HiddenStates, Target


class AuxHead(DraftHead):
    """An ``AuxHead`` is fed hidden states of several of the target's layers, side by side.

    Its ``form`` states which. ``rotary`` is its own.
    """

    form: Any
    rotary: Any

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Return the target's layers whose input the head is fed."""
        layers: tuple[int, ...] = self.form.aux_layers
        return layers

    @property
    def fed_size(self) -> int:
        """Return the width of what the head is fed: the target's states side by side."""
        return self.proj.in_features

    def to_input(self, hidden: "HiddenStates") -> Tensor:
        """Return the auxiliary hidden states ``[B, S, A * H]`` that the head is fed."""
        return torch.cat(hidden.aux, dim=-1)

    def rope(self, target: "Target", like: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head's own rotary cosines and sines for ``position_ids [B, S]``."""
        cos, sin = self.rotary(like, position_ids)
        return cos, sin
