"""The end of a layer as one operator: activation, last product and residual.

A compiler that is shown products as operators fuses nothing into them. So in the graph that it is
given, ``residual + linear(silu(gate) * up)`` at the end of a layer becomes one operator, which at
few rows is one kernel. Where a layer ends otherwise, or with another activation, what does not
match stays as it was.
"""

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch._inductor.compile_fx import compile_fx
from torch.fx import GraphModule

from cgbench.engine import operators


def compile_layer(graph_module: GraphModule, inputs: list[Tensor]) -> Any:
    """A backend of ``torch.compile``: inductor, behind ``use_layer_end``."""
    return compile_fx(use_layer_end(graph_module), inputs)


def use_layer_end(graph_module: GraphModule) -> GraphModule:
    """Put the operator where ``graph_module`` returns a residual's sum with a product, in place."""
    graph = graph_module.graph
    for out in graph.output_node().all_input_nodes:
        if found := _residual_and_product(out):
            residual, product = found
            x, weight, bias = product.args
            gate_up = _packed_input(x)
            inputs = (x if gate_up is None else gate_up, weight, bias, residual)
            with graph.inserting_before(out):
                end = graph.call_function(operators.LAYER_END, (*inputs, gate_up is not None))
            out.replace_all_uses_with(end)
    graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _residual_and_product(node: Any) -> tuple[Any, Any] | None:
    """The operands of ``residual + linear(...)``, in either order."""
    if node.target is not operator.add or len(node.all_input_nodes) != 2:
        return None
    for residual, product in (node.args, node.args[::-1]):
        if product.target is operators.LINEAR and len(product.users) == 1:
            return residual, product
    return None


def _packed_input(x: Any) -> Any:
    """The node whose halves ``silu(gate) * up`` is of, or None."""
    if x.target is not operator.mul or len(x.users) > 1 or len(x.all_input_nodes) != 2:
        return None
    for activated, up in (x.args, x.args[::-1]):
        if activated.target is F.silu:
            return _halved(activated.args[0], up)
    return None


def _halved(gate: Any, up: Any) -> Any:
    """The node that was split in two equal parts, ``gate`` and ``up`` in this order, or None."""
    if gate.target is not operator.getitem or up.target is not operator.getitem:
        return None
    split = gate.args[0]
    if split is not up.args[0] or (gate.args[1], up.args[1]) != (0, 1) or split.target != "split":
        return None
    packed, sizes = split.args
    is_halved = len(sizes) == 2 and len({*sizes}) == 1 and split.kwargs == {"dim": -1}
    return packed if is_halved else None
