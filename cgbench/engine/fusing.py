"""What stands around a product, taken into it.

A compiler that is shown products as operators fuses nothing into them. So in the graph that it is
given, ``silu(gate) * up`` of one product's halves becomes one operator with that product, and so
does a product with the residual to which a layer adds it at its end; at few rows each is one
kernel. What does not match stays as it was.
"""

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from cgbench.engine.operators import GATED_LINEAR, LINEAR, LINEAR_ADD

# What a pattern is made of: none writes in place.
_IN_PATTERNS = {F.silu, operator.getitem, "split", LINEAR}


def compile_layer(graph_module: GraphModule, inputs: list[Tensor]) -> Any:
    """A backend of ``torch.compile``: inductor, behind ``fuse_products``."""
    # Imported here: it takes a second, and asks for the CUDA device, after which nothing can fork.
    from torch._inductor.compile_fx import compile_fx

    options = {"triton.enable_pdl": can_launch_early(graph_module)}
    return compile_fx(fuse_products(graph_module), inputs, config_patches=options)


def can_launch_early(graph_module: GraphModule) -> bool:
    """Whether inductor's kernels may begin before the one ahead has ended: see ``launch``.

    Its kernels wait before they read. One that only writes does not wait at all (torch 2.11 to
    2.13), and who waits for it does not wait for those ahead of it. So: where every tensor is made
    from another's values, as in a dense layer, and not where a router starts from zeros.
    """
    return not any(_reads_nothing(node) for node in graph_module.graph.nodes)


def _reads_nothing(node: Any) -> bool:
    """Whether ``node`` makes a tensor, or a part of one, from no other's values."""
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


def fuse_products(graph_module: GraphModule) -> GraphModule:
    """Put the operators into ``graph_module``, as Dynamo traced it, in place."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        product = _gated_product(node)
        if product is not None:
            _replace(node, GATED_LINEAR, product.args)
    for out in graph.output_node().all_input_nodes:
        residual, product = _residual_and_product(out)
        if product is not None:
            _replace(out, LINEAR_ADD, (*product.args, residual))
    graph_module.recompile()
    return graph_module


def _replace(node: Any, operator_: Any, inputs: tuple[Any, ...]) -> None:
    """Put the operator in ``node``'s place, and take out what is left of the pattern.

    No more than that: Dynamo's graph writes in place too, and nothing uses what that returns.
    """
    with node.graph.inserting_before(node):
        fused = node.graph.call_function(operator_, inputs)
    fused.meta.update(node.meta)
    node.replace_all_uses_with(fused)
    _take_out(node)


def _take_out(node: Any) -> None:
    """Erase a node that nothing uses, then those that only it has used."""
    used = node.all_input_nodes
    node.graph.erase_node(node)
    for each in used:
        if each.target in _IN_PATTERNS and not each.users:
            _take_out(each)


def _gated_product(node: Any) -> Any:
    """The product of whose halves ``node`` is ``silu(gate) * up``, or None."""
    if node.target is not operator.mul or len(node.all_input_nodes) != 2:
        return None
    for activated, up in (node.args, node.args[::-1]):
        if activated.target is F.silu and len(activated.users) == 1 and not activated.kwargs:
            return _halved(activated.args[0], up)
    return None


def _halved(gate: Any, up: Any) -> Any:
    """The product that was split in two equal parts, ``gate`` and ``up`` in this order, used
    nowhere else, or None."""
    if gate.target is not operator.getitem or up.target is not operator.getitem:
        return None
    split = gate.args[0]
    if split is not up.args[0] or (gate.args[1], up.args[1]) != (0, 1) or split.target != "split":
        return None
    product, sizes = split.args
    is_in_two = isinstance(sizes, list | tuple) and len(sizes) == 2 and sizes[0] == sizes[1]
    is_halved = is_in_two and split.kwargs == {"dim": -1}
    is_alone = all(len(part.users) == 1 for part in (gate, up, product))
    return product if is_halved and is_alone and product.target is LINEAR else None


def _residual_and_product(node: Any) -> tuple[Any, Any]:
    """The operands of ``residual + linear(...)``, in either order, or None twice."""
    if node.target is operator.add and len(node.all_input_nodes) == 2:
        for residual, product in (node.args, node.args[::-1]):
            if product.target is LINEAR and len(product.users) == 1 and _alike(residual, product):
                return residual, product
    return None, None


def _alike(residual: Any, product: Any) -> bool:
    """Whether they have one shape and type: their sum is no wider than they are."""
    one, other = residual.meta["example_value"], product.meta["example_value"]
    return bool(one.shape == other.shape and one.dtype == other.dtype)
