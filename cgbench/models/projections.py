"""Projections of one input, packed into one product.

Query, key and value, or gate and up, or all that a gated delta net is fed, read the same hidden
states. One product of all of them reads its weights at a higher bandwidth than each apart, most of
all key's and value's small ones. transformers' code stays as it is: the first projection computes
them all, the others hand out their part.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("in_proj_qkvz", "in_proj_ba"),
)
"""Names of sibling projections of one input, in the order in which transformers calls them."""


@torch.no_grad()
def pack_projections(module: nn.Module) -> int:
    """Pack every set of ``PACKS`` found in ``module``, in place; returns how many.

    Weights keep their names and values, and become views of the packed ones. No more memory is held
    than before, and at most one set more while it is packed. Projections that are not plain linear
    layers of one dtype (quantised, summed over ranks) are left alone.
    """
    found = [
        (parent, names)
        for parent in module.modules()
        for names in PACKS
        if _can_pack([getattr(parent, name, None) for name in names])
    ]
    for parent, names in found:
        packed = pack([getattr(parent, name) for name in names])
        for name, projection in zip(names, packed, strict=True):
            setattr(parent, name, projection)
    return len(found)


def _can_pack(projections: Sequence[object]) -> bool:
    if any(type(each) is not nn.Linear for each in projections):
        return False
    linears = [each for each in projections if isinstance(each, nn.Linear)]
    kinds = {
        (type(p), each.in_features, each.bias is None, p.dtype, p.device)
        for each in linears
        for p in each.parameters()
    }
    return len(kinds) == 1


def pack(linears: Sequence[nn.Linear]) -> list["Projection"]:
    """``linears`` of one input as one product; their parameters are emptied on the way."""
    # Where ranks share a projection, its weight is a part of its ``out_features``.
    sizes = [each.weight.shape[0] for each in linears]
    weight = _packed([each.weight for each in linears])
    biases = [each.bias for each in linears if each.bias is not None]
    bias = _packed(biases) if biases else None
    others = [HandedOut(*views) for views in _views(weight, bias, sizes)[1:]]
    return [PackedFirst(weight, bias, sizes, others), *others]


def _packed(parameters: Sequence[Tensor]) -> Tensor:
    packed = torch.cat([parameter.data for parameter in parameters])
    for parameter in parameters:
        parameter.data = parameter.data.new_empty(0)
    return packed


def _views(
    weight: Tensor, bias: Tensor | None, sizes: list[int]
) -> list[tuple[Tensor, Tensor | None]]:
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    return list(zip(weight.split(sizes), biases, strict=True))


class Projection(nn.Module):
    """One of the packed projections: its own weight and bias, as a checkpoint names them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, False))

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


class HandedOut(Projection):
    """A projection that the first of its set has computed already."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.computed: tuple[Tensor, Tensor] | None = None
        """The input, and this projection of it."""

    def forward(self, x: Tensor) -> Tensor:
        computed, self.computed = self.computed, None
        assert computed is not None and computed[0] is x, "projections called in another order"
        return computed[1]


class PackedFirst(Projection):
    """The projection that is called first, and computes its whole set."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, sizes: list[int], others: list[HandedOut]
    ) -> None:
        super().__init__(*_views(weight, bias, sizes)[0])
        self.packed_weight: Tensor
        self.packed_bias: Tensor | None
        self.sizes = sizes
        # In a tuple, so that they are modules of their parent's alone.
        self.others = (*others,)
        self.linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = F.linear
        self.register_buffer("packed_weight", weight, persistent=False)
        self.register_buffer("packed_bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        together = self.linear(x, self.packed_weight, self.packed_bias)
        first: Tensor
        first, *rest = together.split(self.sizes, dim=-1)
        for other, part in zip(self.others, rest, strict=True):
            other.computed = x, part
        return first
