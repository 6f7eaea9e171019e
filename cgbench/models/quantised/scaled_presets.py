"""Convert the random weights of a preset to FP8.

The same weights are converted as in public checkpoints of its kind.
"""

import re
from collections.abc import Iterable

import torch
from torch import Size, Tensor, nn

from cgbench.kernels.fp8.block_scales import FP8, quantised, row_blocks_of
from cgbench.models.experts import num_fused
from cgbench.models.quantised.scaled_modules import set_scales
from cgbench.models.quantised.scheme import BLOCK

# Public checkpoints leave these linear layers of a decoder layer as they are. They are the gates of
# a mixture and of its shared expert, and the small projections of gated delta nets.
_PLAIN = ("gate", "shared_expert_gate", "in_proj_a", "in_proj_b", "in_proj_ba")


# A parameter of the block of a head's first module, or of a later one.
_IN_BLOCK = re.compile(r"(later\.\d+\.)?block\.")


def converted(module: nn.Module) -> dict[str, Size]:
    """Return the parameters of ``module``'s decoder layers that are to be FP8.

    The result maps their names to their scales' shapes. Embeddings, lm_head, norms, routers and a
    head's projection stay as they are.
    """
    return {
        name: _grid(parameter.shape, num_fused(name))
        for name, parameter in module.named_parameters()
        if _is_in_layer(name) and _is_converted(module, name)
    }


def _is_in_layer(name: str) -> bool:
    return ".layers." in name or _IN_BLOCK.match(name) is not None


def _is_converted(module: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    if num_fused(name) > 1 or (owner.endswith(".experts") and leaf == "down_proj"):
        return True
    is_linear = type(module.get_submodule(owner)) is nn.Linear and leaf == "weight"
    return is_linear and owner.rpartition(".")[2] not in _PLAIN


def _grid(shape: Size, parts: int) -> Size:
    *experts, rows, columns = shape
    return Size((*experts, parts * -(-(rows // parts) // BLOCK), -(-columns // BLOCK)))


@torch.no_grad()
def quantise_parameters(module: nn.Module, names: Iterable[str]) -> None:
    """Make the parameters ``names`` of ``module`` FP8, one matrix at a time, in place."""
    for name in names:
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        parameter = owner._parameters[leaf]
        assert parameter is not None
        parts = num_fused(name)
        weight, scale = _quantised(parameter.detach(), parts)
        owner._parameters[leaf] = nn.Parameter(weight, requires_grad=False)
        set_scales(owner, leaf, scale, row_blocks_of(weight.shape[-2], scale.shape[-2], parts))


def _quantised(values: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    weight = torch.empty(values.shape, dtype=FP8, device=values.device)
    grid = _grid(values.shape, parts)
    scale = torch.empty(grid, dtype=torch.float32, device=values.device)
    rows, blocks = values.shape[-2] // parts, grid[-2] // parts
    matrices = zip(
        weight.view(-1, rows, values.shape[-1]),
        scale.view(-1, blocks, grid[-1]),
        values.reshape(-1, rows, values.shape[-1]),
        strict=True,
    )
    for stored, its, each in matrices:
        stored[:], its[:] = quantised(each, BLOCK)
    return weight, scale
