"""Define modules whose weights are FP8.

They keep their class's names, and hold scales beside the weights.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cgbench.kernels import linear as products
from cgbench.kernels.fp8.block_scales import FP8, column_block, dequantised
from cgbench.kernels.fp8.definition import is_by_definition
from cgbench.kernels.fp8.token_values import LEAST_COLUMNS
from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.moe.expert_products import Choice, Experts, ExpertScales, apply_by_torch


class ScaledLinear(nn.Linear):
    """A ``ScaledLinear`` is a linear layer of FP8 weights ``[N, K]``.

    Its scales are ``weight_scale [R, C]`` and ``weight_row_blocks [N]``, as in
    ``kernels.fp8.block_scales``.
    """

    weight_scale: Tensor
    weight_row_blocks: Tensor
    is_w8a8 = False
    """Whether what it multiplies is quantised first."""

    def forward(self, x: Tensor) -> Tensor:
        return products.linear(x, self.weight, self.bias, *scaling_of(self))


def scaling_of(module: nn.Module) -> tuple[Tensor, Tensor, bool]:
    """Return the last arguments of a product with the FP8 weight of a linear layer."""
    layer: Any = module
    return layer.weight_scale, layer.weight_row_blocks, layer.is_w8a8


def least_columns(module: nn.Module) -> int:
    """Return the fewest columns that one scale of an FP8 weight in ``module`` is for.

    Without such a weight it is ``LEAST_COLUMNS``.
    """
    pairs = (
        (weight, scales_of(part, leaf))
        for part in module.modules()
        for leaf, weight in part._parameters.items()
    )
    columns = (
        column_block(weight.shape[-1], scales[0].shape[-1])
        for weight, scales in pairs
        if weight is not None and scales is not None
    )
    return min(columns, default=LEAST_COLUMNS)


def scales_of(module: nn.Module, leaf: str) -> tuple[Tensor, Tensor] | None:
    """Return the scales and the row blocks of a module's parameter ``leaf``, or None without
    them."""
    scale = module._buffers.get(f"{leaf}_scale")
    row_blocks = module._buffers.get(f"{leaf}_row_blocks")
    return None if scale is None or row_blocks is None else (scale, row_blocks)


WHOLE_SCALE = "_whole_scale"
"""The name of a weight's whole scales is the weight's name with this ending.

They are kept if a rank reads a part of them.
"""


def set_scales(
    module: nn.Module,
    leaf: str,
    scale: Tensor,
    row_blocks: Tensor,
    *,
    whole: Tensor | None = None,
) -> None:
    """Give a module's FP8 parameter ``leaf`` its scales, and the module a class that reads them.

    Row blocks go to the scales' device. ``whole`` are the scales that ``scale`` is a part of. A
    model's fingerprint is made of them.
    """
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
    """Return a class of experts like ``kind`` whose fused weights are FP8.

    Few tokens on CUDA go to the kernel that reads chosen experts alone. For more, the class's own
    forward runs on the weights' values, which live for that call.
    """

    class ScaledExperts(kind):  # type: ignore[misc]
        holds_scales = True
        is_plain = False
        """True if the kernel computes what the class does. It is set after the model is loaded."""
        is_w8a8 = False

        def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Any:
            choice = top_k_index, top_k_weights
            apart = _apart(self, hidden, *choice)
            if apart is not None:
                return apart
            with _values_in_place(self, hidden.dtype):
                return super().forward(hidden, *choice)

    ScaledExperts.__name__ = f"Scaled{kind.__name__}"
    return ScaledExperts


MAX_STREAMED_TOKENS = 256
"""The kernel of chosen experts takes at most this many tokens that are not quantised.

Above it nearly all experts are chosen, and products are bound by arithmetic.
"""

_NEVER_W8A8 = ("kv_b_proj",)
"""These linear layers multiply activations as they are, in either mode.

Latent attention absorbs this one, and engines make its values for that.
"""


def quantises_rows(name: str) -> bool:
    """Return whether the FP8 parameter called ``name`` multiplies quantised rows in W8A8."""
    return not any(each in name.split(".") for each in _NEVER_W8A8)


def use_w8a8(module: nn.Module) -> None:
    """Make products of the FP8 weights in ``module`` quantise what they multiply, in place."""
    for name, part in module.named_modules():
        if hasattr(part, "is_w8a8") and quantises_rows(name):
            part.is_w8a8 = True


def _apart(module: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor | None:
    """Return the chosen experts' sum without the values of all experts, or None."""
    if not getattr(module, "is_plain", False):
        return None
    streamed = None if is_by_definition() else _streamed(module, hidden, chosen, weights)
    if streamed is None and (is_by_definition() or module.is_w8a8):
        return apply_by_torch(experts_in(module), hidden, Choice(chosen, weights), None)
    return streamed


def _streamed(module: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor | None:
    """Return the result of the experts' kernel, or None if it does not take these."""
    if not runs_kernels(hidden.device):
        return None
    is_few = hidden.dtype != torch.float32 and len(hidden) <= MAX_STREAMED_TOKENS
    if not is_few and not module.is_w8a8:
        return None
    # Imported here, because triton is there only beside a CUDA build of torch.
    from cgbench.kernels.moe import triton_experts
    from cgbench.kernels.moe.expert_plan import can_apply

    experts = experts_in(module)
    if not can_apply(experts):
        return None
    choice = Choice(chosen.contiguous(), weights.contiguous())
    return triton_experts.apply(experts, hidden, choice, None)


def experts_in(module: nn.Module) -> Experts:
    """Return the weights of a plain mixture, and their scales."""
    weights = [module._parameters[leaf] for leaf in ("gate_up_proj", "down_proj")]
    scales = [scales_of(module, leaf) for leaf in ("gate_up_proj", "down_proj")]
    assert weights[0] is not None and weights[1] is not None
    gate_up, down = (None if each is None else ExpertScales(*each) for each in scales)
    is_w8a8 = bool(getattr(module, "is_w8a8", False))
    return Experts(weights[0], weights[1], gate_up, down, is_w8a8)


@contextmanager
def _values_in_place(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Put the values of the module's FP8 parameters in their place meanwhile, under their names."""
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
    """Return whether ``name`` is a module's FP8 parameter, or the scales of one."""
    weight = module._parameters.get(name.removesuffix("_scale"))
    return weight is not None and weight.dtype == FP8
