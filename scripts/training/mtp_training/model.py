"""A target with its head, and the head's tensors as a checkpoint holds them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cgbench.models.heads.families import MIMO
from cgbench.models.heads.head import DraftHead
from cgbench.models.heads.head_wiring import CONFIG_FIELD, stated_points, wired
from cgbench.models.target import Target
from cgbench.request.choices import FirstEmbedding, NormSide
from cgbench.request.parts import HeadWiring

_WIRING = HeadWiring(hidden_in=NormSide.PRE, chain=NormSide.PRE, first_embed=FirstEmbedding.KEPT)
TRAINED = wired(MIMO, _WIRING)
"""MiMo's layout, with the wiring that heads are trained with here: the target's state before its
norm, the head's own before its, and an embedding at every position."""
STATED: dict[str, Any] = {CONFIG_FIELD: {"family": MIMO.name, **stated_points(_WIRING)}}
"""What config.json says of such a head, so that it is run as it was trained."""


@dataclass
class Model:
    """A target with its head, and the settings under which both are computed."""

    target: Target
    head: DraftHead
    device: torch.device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def head_tensors(head: DraftHead) -> dict[str, Tensor]:
    """The head under its family's checkpoint names, in bfloat16 on the CPU: ready to be saved."""
    names = {head.family.tensor_name(name): tensor for name, tensor in head.state_dict().items()}
    return {name: ready_to_save(tensor) for name, tensor in names.items()}


def ready_to_save(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.bfloat16).contiguous()
