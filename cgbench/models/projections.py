"""Pack projections of one input into one product, which reads weights faster.

Query, key and value read the same hidden states. So do gate and up, and all inputs of a gated delta
net. One product of them all reads its weights at a higher bandwidth than separate products. The
small ones of key and value gain most. transformers' code stays as it is: the first projection
computes them all, and the others hand out their part.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgbench.kernels import linear as products
from cgbench.models.quantised.scaled_modules import ScaledLinear

PACKS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("in_proj_qkvz", "in_proj_ba"),
    # If the large ones alone are FP8, as published, each kind is a product.
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""These are names of sibling projections of one input.

They are in the order in which they are called. A set that holds another comes before it.
"""


@torch.no_grad()
def pack_projections(module: nn.Module) -> int:
    """Pack every set of ``PACKS`` found in ``module``, in place, and return how many there were.

    Weights keep their names and values, and become views of the packed ones. No more memory is held
    than before, and at most one set more while it is packed. A set must be plain linear layers of
    one dtype, all FP8 or none. Other projections are left alone, and so are those summed over
    ranks.
    """
    num_packed = 0
    for parent in list(module.modules()):
        for names in PACKS:
            # What is packed already is no plain linear layer any more.
            if not _can_pack([getattr(parent, name, None) for name in names]):
                continue
            packed = pack([getattr(parent, name) for name in names])
            for name, projection in zip(names, packed, strict=True):
                setattr(parent, name, projection)
            num_packed += 1
    return num_packed


def _can_pack(projections: Sequence[object]) -> bool:
    if {type(each) for each in projections} not in ({nn.Linear}, {ScaledLinear}):
        return False
    linears = [each for each in projections if isinstance(each, nn.Linear)]
    kinds = {
        tuple((name, type(p), p.dtype, p.device) for name, p in each.named_parameters())
        for each in linears
    }
    inputs = {each.in_features for each in linears}
    scales = {each.weight_scale.shape[1] for each in linears if isinstance(each, ScaledLinear)}
    return len(kinds) == len(inputs) == 1 and len(scales) <= 1 and _of_one_type(linears)


def _of_one_type(linears: Sequence[nn.Linear]) -> bool:
    """Return whether plain weights and biases have one type, because they are joined in one
    product."""
    if isinstance(linears[0], ScaledLinear):
        return True
    return len({p.dtype for each in linears for p in each.parameters()}) == 1


def pack(linears: Sequence[nn.Linear]) -> list["Projection"]:
    """Return ``linears`` of one input as projections that are one product.

    The parameters of ``linears`` are emptied on the way.
    """
    # Where ranks share a projection, its weight is a part of its ``out_features``.
    sizes = [each.weight.shape[0] for each in linears]
    weight = _packed([each.weight for each in linears])
    biases = [each.bias for each in linears if each.bias is not None]
    bias = _packed(biases) if biases else None
    others = [HandedOut(*views) for views in _views(weight, bias, sizes)[1:]]
    first = PackedFirst(weight, bias, sizes, others)
    scaled = [each for each in linears if isinstance(each, ScaledLinear)]
    if scaled:
        _pack_scales(first, others, scaled)
    return [first, *others]


def _pack_scales(
    first: "PackedFirst", others: Sequence["HandedOut"], scaled: Sequence[ScaledLinear]
) -> None:
    """Stack the scales as the weights are.

    Each projection's own scales are a view, and are saved with it.
    """
    sizes = [each.weight_scale.shape[0] for each in scaled]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    scale = torch.cat([each.weight_scale for each in scaled])
    row_blocks = torch.cat(
        [each.weight_row_blocks + start for each, start in zip(scaled, starts, strict=True)]
    )
    for part, own in zip((first, *others), scale.split(sizes), strict=True):
        part.register_buffer("weight_scale", own)
    first.is_w8a8 = scaled[0].is_w8a8
    first.register_buffer("packed_scale", scale, persistent=False)
    first.register_buffer("packed_row_blocks", row_blocks, persistent=False)


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
    """A projection is one of a packed set, with its own weight and bias, named as in a
    checkpoint."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, False))

    @property
    def in_features(self) -> int:
        """Return the number of inputs."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Return the number of outputs."""
        return self.weight.shape[0]


class HandedOut(Projection):
    """A ``HandedOut`` is a projection that the first of its set has computed already."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.computed: tuple[Tensor, Tensor] | None = None
        """The input and its projection, until they are handed out."""

    def forward(self, x: Tensor) -> Tensor:
        computed, self.computed = self.computed, None
        assert computed is not None and computed[0] is x, "projections called in another order"
        return computed[1]


class PackedFirst(Projection):
    """A ``PackedFirst`` is the projection that is called first and computes its whole set."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, sizes: list[int], others: list[HandedOut]
    ) -> None:
        super().__init__(*_views(weight, bias, sizes)[0])
        self.packed_weight: Tensor
        self.packed_bias: Tensor | None
        self.sizes = sizes
        # A tuple hides them from torch, so they are modules of their parent alone.
        self.others = (*others,)
        self.is_w8a8 = False
        self.packed_scale: Tensor | None
        self.packed_row_blocks: Tensor | None
        self.linear: Callable[..., Tensor] = F.linear
        self.register_buffer("packed_weight", weight, persistent=False)
        self.register_buffer("packed_bias", bias, persistent=False)
        self.register_buffer("packed_scale", None, persistent=False)
        self.register_buffer("packed_row_blocks", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        together = self._product(x)
        first: Tensor
        first, *rest = together.split(self.sizes, dim=-1)
        for other, part in zip(self.others, rest, strict=True):
            other.computed = x, part
        return first

    def others_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the projections of ``x`` by all of the set but this one, in their order.

        The weights are plain. Raise ``AssertionError`` for FP8 ones.
        """
        assert self.packed_scale is None
        own, *sizes = self.sizes
        bias = None if self.packed_bias is None else self.packed_bias[own:]
        others: tuple[Tensor, ...] = self.linear(x, self.packed_weight[own:], bias).split(sizes, -1)
        return others

    def _product(self, x: Tensor) -> Tensor:
        if self.packed_scale is None:
            return self.linear(x, self.packed_weight, self.packed_bias)
        scales = self.packed_scale, self.packed_row_blocks, self.is_w8a8
        multiply = products.linear if self.linear is F.linear else self.linear
        return multiply(x, self.packed_weight, self.packed_bias, *scales)
