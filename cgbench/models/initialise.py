"""Random weights for a preset: transformers' own initialisation, one module after another."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cgbench.models.request import LoadingPlan
from cgbench.models.support import auto_class_for

# The standard deviation that transformers itself initialises these families with.
RANDOM_STD = 0.02


def _whole(_: str, tensor: Tensor) -> Tensor:
    return tensor


def random_target(
    plan: LoadingPlan, keep: Callable[[str, Tensor], Tensor] = _whole, **implementations: str
) -> PreTrainedModel:
    """The target of a preset's plan: the same weights whichever of transformers' implementations
    runs it.

    Every tensor is drawn whole and handed to ``keep`` with its name: what that returns stays. So
    the ranks of a divided model hold parts of the very weights that one process would hold, and
    never more of them at once than one module.
    """
    request = plan.request
    torch.manual_seed(request.seed)
    with torch.device("meta"):
        model: PreTrainedModel = auto_class_for(plan.config).from_config(
            plan.config, dtype=request.dtype, **implementations
        )
    _draw(model, request.device, keep)
    return model


@torch.no_grad()
def _draw(
    model: PreTrainedModel, device: torch.device, keep: Callable[[str, Tensor], Tensor]
) -> None:
    """Give a ``model`` on the meta device its storage and its weights, from torch's generator."""
    for name, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for leaf, tensor in tensors.items():
                if tensor is not None:
                    tensors[leaf] = _empty_like(tensor, device)
        model._init_weights(module)
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                kept = keep(f"{name}.{leaf}", parameter.detach())
                module._parameters[leaf] = nn.Parameter(kept, requires_grad=False)
    model.tie_weights()


def _empty_like(tensor: Tensor, device: torch.device) -> Tensor:
    empty = torch.empty_like(tensor, device=device)
    return nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Matrices normal with transformers' own deviation, norms' weights one, biases zero."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=RANDOM_STD)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
