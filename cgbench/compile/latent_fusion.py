"""Fuse what stands between latent attention and its projections.

transformers norms the query and the latent of one down projection, rotates the latent's key and
every query by neighbours, and puts latents and queries together. Behind operators that would be
five kernels. Here the norms and the key's rotary are one, and attention rotates the queries as it
loads them. Other forms of rotary, and queries without a down projection, stay as they were.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgbench.compile.operators import LINEAR, NORM
from cgbench.compile.patterns import Node, is_call, is_call_once, writes_in_place
from cgbench.kernels.mla import latent_rows as rows
from cgbench.kernels.mla.latent_rows import LatentNorms, PairRotary


@torch.library.custom_op("cgbench::latent_rows", mutates_args=())
def latent_rows(
    x: Tensor,
    query_weight: Tensor,
    query_epsilon: float,
    latent_weight: Tensor,
    latent_epsilon: float,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute ``kernels.mla.latent_rows``, as one operator."""
    norms = LatentNorms(query_weight, query_epsilon, latent_weight, latent_epsilon)
    return rows.latent_rows(x, norms, PairRotary(cos, sin))


@latent_rows.register_fake
def _(x: Tensor, query_weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, length, width = x.shape
    query_rank = query_weight.shape[0]
    query = x.new_empty(batch, length, query_rank)
    return query, x.new_empty(batch, 1, length, width - query_rank)


LATENT_ROWS = torch.ops.cgbench.latent_rows.default


class Rotated(NamedTuple):
    """A ``Rotated`` is ``x [B, H, S, R]`` rotated by neighbours.

    The angles are those of ``cos`` and ``sin [B, S, R]``.
    """

    x: Node
    cos: Node
    sin: Node


class LatentLayer(NamedTuple):
    """A latent layer holds the nodes that latent attention's inputs are made of.

    ``query [B, H, S, key_size + R]`` is as projected. ``product [B, S, q_rank + rank + R]`` is the
    down projection. ``query_norm`` and ``latent_norm`` are the norms of its parts.
    """

    query: Node
    product: Node
    query_norm: Node
    latent_norm: Node
    cos: Node
    sin: Node


def fuse_latent(attend: Node) -> None:
    """Fuse the inputs of the latent attention ``attend`` into operators, if their form is known."""
    found = latent_layer(attend)
    if found is None:
        return
    graph, first = attend.graph, found.query_norm
    nodes = list(graph.nodes)
    used = {node for node in nodes if node.users}
    between = nodes[nodes.index(found.product) : nodes.index(attend)]
    if any(writes_in_place(node) for node in between):
        return
    norms = [*found.query_norm.args[1:3], *found.latent_norm.args[1:3]]
    if not all(_bring_ahead(each, first) for each in (*norms, found.cos, found.sin)):
        return
    with graph.inserting_before(first):
        both = graph.call_function(LATENT_ROWS, (found.product, *norms, found.cos, found.sin))
        query, latent = (graph.call_function(operator.getitem, (both, part)) for part in (0, 1))
    key = attend.args[1]
    both.meta["example_value"] = first.meta["example_value"], key.meta["example_value"]
    for part, replaced in ((query, first), (latent, key)):
        part.meta.update(replaced.meta)
    first.replace_all_uses_with(query)
    _, _, *others, _, _ = attend.args
    attend.args = (found.query, latent, *others, found.cos, found.sin)
    # A node that had no user before stays for its effect. An input stays, because they are counted.
    for node in reversed(nodes):
        if node in used and not node.users and node.op != "placeholder":
            graph.erase_node(node)


def _bring_ahead(value: Any, node: Node) -> bool:
    """Move a number, or a table, ahead of ``node``, if possible."""
    if not isinstance(value, torch.fx.Node) or value.op == "placeholder":
        return True
    nodes = list(node.graph.nodes)
    if nodes.index(value) < nodes.index(node):
        return True
    if any(each.op != "placeholder" for each in value.all_input_nodes):
        return False
    node.prepend(value)
    return True


def latent_layer(attend: Node) -> LatentLayer | None:
    """Return what latent attention's query and latent are made of, or None for another form."""
    if attend.args[-2:] != (None, None):
        return None
    of_query, of_key = _joined(attend.args[0]), _joined(attend.args[1])
    if of_query is None or of_key is None:
        return None
    turned, key = rotated_pairs(of_query[1]), rotated_pairs(of_key[1])
    if turned is None or key is None or turned[1:] != key[1:]:
        return None
    query = _whole_of(of_query[0], turned.x)
    content = _behind_view(of_key[0])
    if query is None or not is_call_once(content, NORM) or content.args[3] != 0.0:
        return None
    down = _whole_of(content.args[0], _behind_view(key.x))
    return None if down is None else _with_query_norm(query, content, down, turned)


def _with_query_norm(query: Node, content: Node, down: Node, turned: Rotated) -> LatentLayer | None:
    """Match ``down``, the latent before its norm, as the second part of a product.

    The first part is normed, alone, to become the query.
    """
    if not is_call_once(down, operator.getitem) or down.args[1] != 1:
        return None
    parts = down.args[0]
    if not is_call(parts, "split") or not is_call_once(parts.args[0], LINEAR):
        return None
    firsts = [each for each in parts.users if is_call(each, operator.getitem) and each.args[1] == 0]
    if len(parts.users) != 2 or len(firsts) != 1 or len(firsts[0].users) != 1:
        return None
    (norm,) = firsts[0].users
    if not is_call(norm, NORM) or norm.args[3] != 0.0:
        return None
    return LatentLayer(query, parts.args[0], norm, content, turned.cos, turned.sin)


def _joined(node: Node) -> Sequence[Node] | None:
    """Return the two that ``node`` puts side by side in the last dimension, or None."""
    if not is_call_once(node, torch.cat) or node.kwargs != {"dim": -1}:
        return None
    parts: Sequence[Node] = node.args[0]
    return parts if len(parts) == 2 else None


def _behind_view(node: Node) -> Node:
    return node.args[0] if is_call(node, "view") else node


def _whole_of(first: Node, second: Node) -> Node | None:
    """Return what was split in the last dimension into ``first`` and ``second``, in this order."""
    if not (is_call(first, operator.getitem) and is_call(second, operator.getitem)):
        return None
    split = first.args[0]
    if split is not second.args[0] or (first.args[1], second.args[1]) != (0, 1):
        return None
    if not is_call(split, "split", torch.split, torch.functional.split):
        return None
    is_in_two = len(split.args[1]) == 2 and split.kwargs == {"dim": -1}
    return split.args[0] if is_in_two and len(split.users) == 2 else None


def rotated_pairs(node: Node) -> Rotated | None:
    """Return what ``cat((even * cos - odd * sin, odd * cos + even * sin))`` rotates, or None."""
    halves = _joined(node)
    if halves is None:
        return None
    low, high = halves
    if not (is_call_once(low, operator.sub) and is_call_once(high, operator.add)):
        return None
    even_cos, odd_sin, odd_cos, even_sin = (_factors(each) for each in (*low.args, *high.args))
    if even_cos is None or odd_sin is None or odd_cos is None or even_sin is None:
        return None
    (even, cos), (odd, sin) = even_cos, odd_sin
    if odd_cos != (odd, cos) or even_sin != (even, sin):
        return None
    x, tables = _neighbours(even, odd), [_half_table(each) for each in (cos, sin)]
    if x is None or tables[0] is None or tables[1] is None:
        return None
    return Rotated(x, *tables)


def _factors(node: Node) -> tuple[Node, Node] | None:
    return tuple(node.args) if is_call_once(node, operator.mul) else None


def _neighbours(even: Node, odd: Node) -> Node | None:
    """Return the node of which ``even`` and ``odd`` are every other column, or None."""
    steps = [(Ellipsis, slice(first, None, 2)) for first in (0, 1)]
    for each, step in zip((even, odd), steps, strict=True):
        if not is_call(each, operator.getitem) or each.args[1] != step or len(each.users) != 2:
            return None
    x = even.args[0]
    return x if x is odd.args[0] and len(x.users) == 2 else None


def _half_table(node: Node) -> Node | None:
    """Return the table ``[B, S, R]`` of which ``node`` is the first half for all heads, or None.

    It is made elsewhere.
    """
    if not is_call(node, "unsqueeze") or node.args[1:] != (1,) or node.kwargs:
        return None
    half = node.args[0]
    if not is_call(half, operator.getitem) or half.args[0].op != "placeholder":
        return None
    table, cut = half.args
    size = table.meta["example_value"].shape
    if len(size) != 3 or len(cut) != 2 or cut[0] is not Ellipsis:
        return None
    is_first = cut[1].start is cut[1].step is None
    return table if is_first and _is_half(cut[1].stop, size[-1]) else None


def _is_half(number: Any, size: Any) -> bool:
    """Return whether ``number`` is half of ``size``.

    A symbol is compared by name, because asking for its value would bind the form to it.
    """
    if not isinstance(number, torch.fx.Node):
        return 2 * number == size if isinstance(size, int) else False
    if not is_call(number, operator.floordiv) or number.args[1] != 2:
        return False
    whole = number.args[0]
    of_node = whole.meta["example_value"] if isinstance(whole, torch.fx.Node) else whole
    return str(of_node) == str(size)
