"""Find what stands around products and attention in a decoder layer, one function a pattern.

The graphs are those that Dynamo traces from transformers' modules. A pattern holds no node that is
used elsewhere too.
"""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.compile.mixtures import APPLY_EXPERTS
from cgbench.compile.operators import LINEAR

Node = Any


def is_call(node: Node, *targets: Any) -> bool:
    """Return whether ``node`` calls one of ``targets``, functions or names of methods."""
    return getattr(node, "op", "") in ("call_function", "call_method") and node.target in targets


def is_call_once(node: Node, *targets: Any) -> bool:
    """Return whether ``node`` calls one of ``targets``, and one node alone uses the result."""
    return is_call(node, *targets) and len(node.users) == 1


_WRITES = {
    *(operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv),
}


def writes_in_place(node: Node) -> bool:
    """Return whether ``node`` changes one of its inputs."""
    if node.op not in ("call_function", "call_method"):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    name = node.target if isinstance(node.target, str) else node.target.__name__
    is_given = bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return is_given or name.endswith("_") or node.target in _WRITES


def _operands(node: Node, target: Any) -> Iterator[tuple[Node, Node]]:
    """Yield both orders of the operands, if ``node`` is the commutative operation ``target``."""
    if is_call(node, target) and len(node.args) == 2:
        yield node.args[0], node.args[1]
        yield node.args[1], node.args[0]


def gated_product(node: Node) -> Node:
    """Return the product that ``node`` gates, or None.

    ``node`` must be ``silu(gate) * up`` of the product's halves.
    """
    for activated, up in _operands(node, operator.mul):
        if is_call_once(activated, F.silu) and not activated.kwargs:
            return _halved(activated.args[0], up)
    return None


def _halved(gate: Node, up: Node) -> Node:
    """Return the product that was split in two equal parts, or None.

    The parts are ``gate`` and ``up``, in this order, and the product is used nowhere else.
    """
    if not (is_call_once(gate, operator.getitem) and is_call_once(up, operator.getitem)):
        return None
    split = gate.args[0]
    if (
        split is not up.args[0]
        or (gate.args[1], up.args[1]) != (0, 1)
        or not is_call(split, "split")
    ):
        return None
    product, sizes = split.args
    is_in_two = isinstance(sizes, list | tuple) and len(sizes) == 2 and sizes[0] == sizes[1]
    is_halved = is_in_two and split.kwargs == {"dim": -1}
    return product if is_halved and is_call_once(product, LINEAR) else None


def residual_and_product(node: Node) -> tuple[Node, Node]:
    """Return the operands of ``residual + linear(...)``, in either order, or None twice."""
    for residual, product in _operands(node, operator.add):
        if is_call_once(product, LINEAR) and residual is not product and _alike(residual, product):
            return residual, product
    return None, None


def with_end(product: Node, *end: Any) -> tuple[Any, ...]:
    """Return what the operator of ``product`` with an end reads.

    This is the product's input, weight and bias, what the end reads, and the scales of an FP8
    weight.
    """
    return (*product.args[:3], *end, *product.args[3:])


class MixtureEnd(NamedTuple):
    """A mixture end is the sum at the end of a layer with experts.

    It is ``residual`` plus ``experts``, plus ``shared`` if there is a shared expert.
    """

    residual: Node
    shared: Node | None
    experts: Node


def mixture_end(node: Node) -> MixtureEnd | None:
    """Return the mixture end that ``node`` is the sum of, in either order of each sum, or None."""
    for residual, rest in _operands(node, operator.add):
        inner = _behind_views(rest)
        if is_call_once(inner, APPLY_EXPERTS):
            return MixtureEnd(residual, None, inner)
        if not is_call_once(inner, operator.add):
            continue
        for shared, other in _operands(inner, operator.add):
            experts = _behind_views(other)
            if is_call_once(experts, APPLY_EXPERTS):
                return MixtureEnd(residual, shared, experts)
    return None


def _behind_views(node: Node) -> Node:
    """Return the node that ``node`` is another shape of."""
    while is_call_once(node, "view", "reshape", "to") and _type(node) == _type(node.args[0]):
        node = node.args[0]
    return node


def _alike(residual: Node, product: Node) -> bool:
    """Return whether both have one shape and type, so that their sum is no wider than they are."""
    if not isinstance(residual, torch.fx.Node):
        return False
    one, other = residual.meta["example_value"], product.meta["example_value"]
    return isinstance(one, Tensor) and one.shape == other.shape and one.dtype == other.dtype


class Normed(NamedTuple):
    """A ``Normed`` is a root-mean-square norm of ``x``, multiplied by ``weight + offset``."""

    x: Node
    weight: Node
    epsilon: Node
    offset: float


def norm_of(node: Node) -> Normed | None:
    """Return the norm that ``node`` is the result of, or None.

    transformers has two ways to write it. Llama has ``weight * normed.to(type)``. Gemma has
    ``(normed * (1.0 + weight.float())).type_as(x)``. In both ``normed`` is of float32 values.
    """
    if is_call(node, "type_as"):
        return _norm_as_in_gemma(*node.args)
    for weight, normed in _operands(node, operator.mul):
        if _is_weight(weight) and is_call_once(normed, "to"):
            return _norm_as_in_llama(node, weight, normed.args[0])
    return None


def _norm_as_in_llama(node: Node, weight: Node, normed: Node) -> Normed | None:
    found = _root_mean_square(normed)
    if found is None or _type(node) != _type(found[0]) or not _is_gain(weight, found[0]):
        return None
    return Normed(found[0], weight, found[1], 0.0)


def _norm_as_in_gemma(product: Node, like: Node) -> Normed | None:
    for normed, gain in _operands(product, operator.mul):
        weight, found = _one_more_than(gain), _root_mean_square(normed)
        if weight is None or found is None:
            continue
        if found[0] is like and _is_gain(weight, like):
            return Normed(like, weight, found[1], 1.0)
    return None


def _is_weight(node: Node) -> bool:
    return getattr(node, "op", "") == "placeholder"


def _is_gain(weight: Node, x: Node) -> bool:
    """Return whether ``weight`` has one number for each column of ``x``."""
    return _shape(weight) == _shape(x)[-1:]


def _one_more_than(node: Node) -> Node | None:
    """Return the weight of ``1.0 + weight.float()``, or None."""
    for one, wide in _operands(node, operator.add):
        if one == 1.0 and is_call_once(wide, "float") and _is_weight(wide.args[0]):
            return wide.args[0]
    return None


def _root_mean_square(node: Node) -> tuple[Node, Node] | None:
    """Return ``x`` and ``epsilon`` of a root-mean-square norm without gain, or None.

    The pattern is ``wide * rsqrt(wide.pow(2).mean(-1, keepdim=True) +
    epsilon)``. There ``wide`` is ``x`` in float32, and ``epsilon`` is a number.
    """
    for wide, root in _operands(node, operator.mul):
        if not (is_call_once(root, torch.rsqrt) and _is_widened(wide)):
            continue
        for mean, epsilon in _operands(root.args[0], operator.add):
            is_mean = is_call_once(mean, "mean") and _is_mean_square(mean, wide)
            if is_mean and _is_number(epsilon):
                return wide.args[0], epsilon
    return None


def _is_number(node: Node) -> bool:
    """Return whether ``node`` is a number.

    Dynamo takes a module's float for an input, and then the number is a symbol.
    """
    is_node = isinstance(node, torch.fx.Node)
    return not is_node or not isinstance(node.meta["example_value"], Tensor)


def _is_widened(node: Node) -> bool:
    is_wide = is_call(node, "float") or (is_call(node, "to") and node.args[1:] == (torch.float32,))
    return is_wide and len(node.users) == 2 and not node.kwargs


def _is_mean_square(mean: Node, wide: Node) -> bool:
    square = mean.args[0]
    is_over_columns = mean.args[1:] == (-1,) and mean.kwargs == {"keepdim": True}
    return is_over_columns and is_call_once(square, "pow") and square.args == (wide, 2)


def _type(node: Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["example_value"].dtype
    return dtype


def _shape(node: Node) -> torch.Size:
    shape: torch.Size = node.meta["example_value"].shape
    return shape


def summands(node: Node) -> tuple[Node, Node] | None:
    """Return the two nodes of one shape and type whose sum ``node`` is, or None."""
    for one, other in _operands(node, operator.add):
        if isinstance(other, torch.fx.Node) and _alike(one, other):
            return one, other
    return None


class Rotated(NamedTuple):
    """A ``Rotated`` is ``x [B, H, S, D]``, rotated by ``cos`` and ``sin [B, S, D]``."""

    x: Node
    cos: Node
    sin: Node


def rotated(node: Node) -> Rotated | None:
    """Return what ``node`` is the rotation of, or None.

    The halves turn against each other, as ``x * cos + cat((-high, low)) * sin``.
    """
    if not is_call_once(node, operator.add):
        return None
    for straight, across in _operands(node, operator.add):
        if not (is_call_once(straight, operator.mul) and is_call_once(across, operator.mul)):
            continue
        (x, cos), (turned, sin) = straight.args, across.args
        tables = _tables(cos, sin)
        if not _is_across(turned, x) or tables is None:
            continue
        if _type(node) == _type(x) and all(_shape(each)[1:] == _shape(x)[2:] for each in tables):
            return Rotated(x, *tables)
    return None


def _is_across(node: Node, x: Node) -> bool:
    """Return whether ``node`` is ``cat((-high, low), dim=-1)`` of the halves of ``x``."""
    if not is_call_once(node, torch.cat) or node.kwargs != {"dim": -1} or len(node.args[0]) != 2:
        return False
    negated, low = node.args[0]
    if not (is_call_once(negated, operator.neg) and is_call_once(low, operator.getitem)):
        return False
    high = negated.args[0]
    if not is_call_once(high, operator.getitem) or {low.args[0], high.args[0]} != {x}:
        return False
    half = _shape(x)[-1] // 2
    cut = (Ellipsis, slice(None, half, None)), (Ellipsis, slice(half, None, None))
    return len(x.users) == 3 and (low.args[1], high.args[1]) == cut


def _tables(cos: Node, sin: Node) -> tuple[Node, Node] | None:
    """Return ``cos`` and ``sin [B, S, R]`` before they were given a dimension of heads, or None."""
    for each in (cos, sin):
        if not is_call(each, "unsqueeze") or each.args[1:] != (1,) or each.kwargs:
            return None
        if len(_shape(each.args[0])) != 3:
            return None
    return cos.args[0], sin.args[0]


class RotatedProduct(NamedTuple):
    """A rotated product is cut into heads, of which query and key are rotated.

    ``query`` and ``key [B, H, S, D]`` are its first ``num_columns`` columns, before they are
    rotated by ``cos`` and ``sin [B, S, D]``.
    """

    product: Node
    cos: Node
    sin: Node
    num_columns: int
    query: Node
    key: Node


def rotated_product(query: Node, key: Node) -> RotatedProduct | None:
    """Return the product that attention's ``query`` and ``key`` are made from, or None."""
    of_query, of_key = rotated(query), rotated(key)
    if of_query is None or of_key is None or of_query[1:] != of_key[1:]:
        return None
    one, other = _heads_of(of_query.x), _heads_of(of_key.x)
    if one is None or other is None or one.split is not other.split or one.size != other.size:
        return None
    product, sizes = one.split.args
    cos, sin = of_query.cos, of_query.sin
    are_first = (one.part, other.part) == (0, 1)
    are_heads = all(size % one.size == 0 for size in sizes)
    # Placeholders are made elsewhere, so they are there when the product is.
    are_given = all(each.op == "placeholder" for each in (cos, sin))
    if not (are_first and are_heads and are_given):
        return None
    return RotatedProduct(product, cos, sin, sizes[0] + sizes[1], of_query.x, of_key.x)


class _Heads(NamedTuple):
    """Heads are one part of a split product, cut into pieces of one size."""

    split: Node
    part: int
    size: int


def _heads_of(node: Node) -> _Heads | None:
    """Return the heads that ``part.view(B, S, -1, D).transpose(1, 2)`` cuts, or None."""
    if not is_call(node, "transpose") or node.args[1:] != (1, 2):
        return None
    view = node.args[0]
    if not is_call_once(view, "view") or len(view.args[1:]) != 1 or len(view.args[1]) != 4:
        return None
    part, size = view.args[0], view.args[1][-1]
    if not is_call_once(part, operator.getitem) or not isinstance(size, int):
        return None
    split, number = part.args
    if not is_call(split, "split") or split.kwargs != {"dim": -1}:
        return None
    product, sizes = split.args
    is_cut = isinstance(sizes, list | tuple) and all(isinstance(each, int) for each in sizes)
    return _Heads(split, number, size) if is_cut and is_call_once(product, LINEAR) else None
