"""Modules whose weights are FP8: they keep their class's names, and hold scales beside them."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cgbench.kernels import linear as products
from cgbench.kernels.fp8.block_scales import FP8, dequantised


class ScaledLinear(nn.Linear):
    """A linear layer of FP8 weights ``[N, K]``: ``weight_scale [R, C]`` and ``weight_row_blocks
    [N]`` are theirs, as ``kernels.fp8.block_scales`` has them."""

    weight_scale: Tensor
    weight_row_blocks: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return products.linear(x, self.weight, self.bias, self.weight_scale, self.weight_row_blocks)


def scales_of(module: nn.Module, leaf: str) -> tuple[Tensor, Tensor] | None:
    """The scales and the row blocks of a module's parameter ``leaf``, None where it has none."""
    scale = module._buffers.get(f"{leaf}_scale")
    row_blocks = module._buffers.get(f"{leaf}_row_blocks")
    return None if scale is None or row_blocks is None else (scale, row_blocks)


WHOLE_SCALE = "_whole_scale"
"""What follows a weight's name in the name of its whole scales, where a rank reads a part."""


def set_scales(
    module: nn.Module,
    leaf: str,
    scale: Tensor,
    row_blocks: Tensor,
    *,
    whole: Tensor | None = None,
) -> None:
    """Give a module's parameter ``leaf``, which is FP8, its scales, and the module the class that
    reads them. Row blocks go to the scales' device. ``whole``: the scales that ``scale`` is a part
    of; they are what a model's fingerprint is made of."""
    module.register_buffer(f"{leaf}_scale", scale, persistent=whole is None)
    if whole is not None:
        module.register_buffer(f"{leaf}{WHOLE_SCALE}", whole)
    module.register_buffer(f"{leaf}_row_blocks", row_blocks.to(scale.device), persistent=False)
    if type(module) is nn.Linear:
        module.__class__ = ScaledLinear
    elif leaf != "weight" and not getattr(module, "holds_scales", False):
        kind: Any = type(module)
        module.__class__ = _scaled_experts(kind)


@functools.cache
def _scaled_experts(kind: Any) -> type[nn.Module]:
    """Experts of class ``kind`` whose fused weights are FP8. Its own forward runs on their values,
    which live for that call."""

    class ScaledExperts(kind):  # type: ignore[misc]
        holds_scales = True

        def forward(self, hidden: Tensor, *args: Any, **keywords: Any) -> Any:
            with _values_in_place(self, hidden.dtype):
                return super().forward(hidden, *args, **keywords)

    ScaledExperts.__name__ = f"Scaled{kind.__name__}"
    return ScaledExperts


@contextmanager
def _values_in_place(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """What the module's FP8 parameters are worth, under their names, meanwhile."""
    own = {leaf: scales_of(module, leaf) for leaf in module._parameters}
    found = {leaf: scales for leaf, scales in own.items() if scales is not None}
    for leaf, scales in found.items():
        weight = module._parameters[leaf]
        assert weight is not None
        # An attribute of the object itself is found before its parameters.
        module.__dict__[leaf] = dequantised(weight, *scales, dtype)
    try:
        yield
    finally:
        for leaf in found:
            del module.__dict__[leaf]


def is_quantised(module: nn.Module, name: str) -> bool:
    """Whether ``name`` is a module's FP8 parameter, or the scales of one."""
    weight = module._parameters.get(name.removesuffix("_scale"))
    return weight is not None and weight.dtype == FP8
