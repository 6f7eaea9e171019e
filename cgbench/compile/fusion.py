"""Fuse a product with the operations around it, and make each norm one operator.

A compiler fuses nothing into a product that it sees as an operator. So the graph is changed before
the compiler gets it. A product takes over one of three things: the rotary embedding of its heads,
``silu(gate) * up`` of its halves, or the residual at a layer's end. At few rows the product and its
end are then one kernel.

A norm becomes one kernel too. If it is the norm of a sum, the kernel makes the sum as well. What
matches no pattern (see ``patterns``) stays as it was.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule

from cgbench.compile.latent_fusion import fuse_latent
from cgbench.compile.mixtures import APPLY_EXPERTS
from cgbench.compile.operators import (
    ADD_NORM,
    ATTEND,
    ATTEND_LATENT,
    GATED_LINEAR,
    LINEAR,
    LINEAR_ADD,
    NORM,
    ROTATED_LINEAR,
)
from cgbench.compile.patterns import (
    MixtureEnd,
    Node,
    Normed,
    gated_product,
    is_call_once,
    mixture_end,
    norm_of,
    residual_and_product,
    rotated_product,
    summands,
    with_end,
    writes_in_place,
)

# Patterns are made of these. None of them writes in place.
_IN_PATTERNS = {
    *(LINEAR, F.silu, torch.rsqrt, torch.cat),
    *(operator.getitem, operator.add, operator.mul, operator.neg),
    *("split", "to", "float", "pow", "mean", "type_as", "unsqueeze"),
    *("view", "reshape", "view_as"),
    APPLY_EXPERTS,
}


def compile_layer(graph_module: GraphModule, inputs: list[Tensor]) -> Any:
    """Compile a layer by inductor, after ``fuse``. This is a backend of ``torch.compile``."""
    # Imported here, because it takes a second. It also asks for the CUDA device, and after that
    # nothing can fork.
    from torch._inductor.compile_fx import compile_fx

    options = {"triton.enable_pdl": can_launch_early(graph_module)}
    return compile_fx(fuse(graph_module), inputs, config_patches=options)


def can_launch_early(graph_module: GraphModule) -> bool:
    """Return whether inductor's kernels may begin before the one ahead has ended.

    ``kernels.gpu`` has the rule. Inductor's kernels wait before they read. A kernel that only
    writes does not wait at all (torch 2.11 to 2.13). A kernel that waits for such a one therefore
    does not wait for those ahead of it.

    So the answer is yes if every tensor is made from another's values, as in a dense layer. It is
    no if a router starts from zeros.
    """
    return not any(_reads_nothing(node) for node in graph_module.graph.nodes)


def _reads_nothing(node: Any) -> bool:
    """Return whether ``node`` makes a tensor, or a part of one, from no other's values."""
    if node.op not in ("call_function", "call_method") or not _is_tensor(node):
        return False
    name = node.target if isinstance(node.target, str) else node.target.__name__
    if name.endswith("_like") or name.startswith("new_") or name in ("one_hot", "fill_", "zero_"):
        return True
    return not any(_is_tensor(each) for each in node.all_input_nodes)


def _is_tensor(node: Any) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, Tensor) or (
        isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value)
    )


def fuse(graph_module: GraphModule) -> GraphModule:
    """Put the operators into ``graph_module``, as Dynamo traced it, in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        norm = norm_of(node)
        # A head's numbers are normed together with rotary, which the compiler does.
        if norm is not None and norm.x.meta["example_value"].dim() == 3:
            _fuse_norm(node, norm)
    for node in list(graph.nodes):
        product = gated_product(node)
        if product is not None and _reads_the_same(node, product.args):
            _replace(node, GATED_LINEAR, product.args)
        elif node.target is ATTEND:
            _fuse_rotary(node)
        elif node.target is ATTEND_LATENT:
            fuse_latent(node)
    for node in graph.output_node().all_input_nodes:
        end = mixture_end(node)
        if end is not None and _reads_the_same(node, _inputs_of(end)):
            _fuse_mixture_end(node, end)
            continue
        residual, product = residual_and_product(node)
        if product is not None and _reads_the_same(node, (*product.args, residual)):
            _replace(node, LINEAR_ADD, with_end(product, residual))
    graph_module.recompile()
    return graph_module


def _fuse_norm(node: Node, norm: Normed) -> None:
    """Make ``node`` one operator. If it is the norm of a sum, the operator makes the sum too."""
    operands = summands(norm.x)
    if operands is not None and _fuse_sum_and_norm(node, norm, (*operands, *norm[1:])):
        return
    if _reads_the_same(node, norm):
        _replace(node, NORM, norm)


def _fuse_sum_and_norm(node: Node, norm: Normed, inputs: tuple[Any, ...]) -> bool:
    """Make ``norm.x`` and ``node`` results of one operator, and return whether that can be done."""
    graph, total = node.graph, norm.x
    if not _reads_the_same(node, inputs) or not _bring_ahead(norm.epsilon, total):
        return False
    with graph.inserting_before(total):
        pair = graph.call_function(ADD_NORM, inputs)
        parts = [graph.call_function(operator.getitem, (pair, part)) for part in (0, 1)]
    pair.meta["example_value"] = total.meta["example_value"], node.meta["example_value"]
    for part, replaced in zip(parts, (total, node), strict=True):
        part.meta.update(replaced.meta)
        replaced.replace_all_uses_with(part)
    _take_out_unused(graph)
    return True


def _bring_ahead(number: Node | float, node: Node) -> bool:
    """Move a module's float ahead of ``node``, and return whether it can be there."""
    if not isinstance(number, torch.fx.Node) or number in _ahead_of(node):
        return True
    can_stand_there = all(each in _ahead_of(node) for each in number.all_input_nodes)
    if can_stand_there:
        node.prepend(number)
    return can_stand_there


def _ahead_of(node: Node) -> set[Node]:
    nodes = list(node.graph.nodes)
    return {*nodes[: nodes.index(node)]}


def _fuse_rotary(attend: Node) -> None:
    """Leave the rotation to a product, if query and key are rotated parts of it."""
    query, key, *rest = attend.args
    found = rotated_product(query, key)
    if found is None:
        return
    inputs = (*found.product.args, found.cos, found.sin, found.num_columns)
    if _reads_the_same(attend, inputs):
        attend.args = (found.query, found.key, *rest)
        _take_out_unused(attend.graph)
        ends = found.cos, found.sin, found.num_columns
        _replace(found.product, ROTATED_LINEAR, with_end(found.product, *ends))


def _reads_the_same(node: Node, inputs: tuple[Any, ...]) -> bool:
    """Return whether ``inputs`` are unchanged between the pattern's first read and ``node``.

    Dynamo's graph writes in place too. Every write counts, because it may be to a view of an input.
    """
    nodes = list(node.graph.nodes)
    places = [nodes.index(each) for each in _pattern(node, inputs) if each.op != "placeholder"]
    return not any(writes_in_place(each) for each in nodes[min(places) : nodes.index(node)])


def _pattern(node: Node, inputs: tuple[Any, ...]) -> set[Node]:
    """Return ``node`` and the nodes that make it from ``inputs``."""
    pattern, behind = {node}, [node]
    while behind:
        last = behind.pop()
        if last.op == "call_method" and last.target == "size":
            # No write changes a size.
            continue
        new = [each for each in last.all_input_nodes if each not in (*inputs, *pattern)]
        pattern.update(new)
        behind += new
    return pattern


def _inputs_of(end: MixtureEnd) -> tuple[Any, ...]:
    nodes = (*end.experts.args, end.residual, end.shared)
    return tuple(each for each in nodes if isinstance(each, torch.fx.Node))


def _fuse_mixture_end(node: Node, end: MixtureEnd) -> None:
    """Leave the sum to the experts' operator. A shared expert's product takes the residual."""
    graph, tokens = node.graph, end.experts.args[0]
    with graph.inserting_before(node):
        added = end.residual
        if end.shared is not None:
            is_product = is_call_once(end.shared, LINEAR)
            added = graph.call_method("view_as", (end.residual, end.shared))
            if is_product:
                added = graph.call_function(LINEAR_ADD, with_end(end.shared, added))
            else:
                added = graph.call_function(operator.add, (added, end.shared))
        rows = graph.call_method("view_as", (added, tokens))
        total = graph.call_function(APPLY_EXPERTS, (*end.experts.args[:-1], rows))
        whole = graph.call_method("view_as", (total, end.residual))
    whole.meta.update(node.meta)
    node.replace_all_uses_with(whole)
    _take_out_unused(graph)


def _replace(node: Node, operator_: Any, inputs: tuple[Any, ...]) -> None:
    """Put the operator in ``node``'s place, and take out what is left of the pattern.

    Nothing else is taken out. Dynamo's graph writes in place too, and nothing uses what such a
    write returns.
    """
    with node.graph.inserting_before(node):
        fused = node.graph.call_function(operator_, inputs)
    fused.meta.update(node.meta)
    node.replace_all_uses_with(fused)
    _take_out_unused(node.graph)


def _take_out_unused(graph: Graph) -> None:
    for node in reversed(graph.nodes):
        if node.target in _IN_PATTERNS and not node.users:
            graph.erase_node(node)
