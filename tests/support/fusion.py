"""What is fused in a traced function, and what it computes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from cgbench.compile.latent_fusion import LATENT_ROWS
from cgbench.compile.mixtures import APPLY_EXPERTS
from cgbench.compile.operators import ADD_NORM, GATED_LINEAR, LINEAR_ADD, NORM, ROTATED_LINEAR

FUSED = [ADD_NORM, GATED_LINEAR, LATENT_ROWS, LINEAR_ADD, NORM, ROTATED_LINEAR]


NEITHER: list[Any] = []
Change = Callable[[GraphModule], GraphModule]


def fused_in(graph: GraphModule) -> list[Any]:
    """The operators that were put into ``graph``."""
    return [node.target for node in graph.graph.nodes if node.target in FUSED]


def mixture_ends(graph: GraphModule) -> list[Any]:
    """What the experts in ``graph`` are added to, None where to nothing."""
    return [node.args[-1] for node in graph.graph.nodes if node.target is APPLY_EXPERTS]


def graph_and_result(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], change: Change = lambda graph: graph
) -> tuple[GraphModule, Any]:
    """``function`` as Dynamo traces it, after ``change``, and what that returns."""
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _: object) -> GraphModule:
        graphs.append(change(graph))
        return graph

    result = torch.compile(function, backend=keep, fullgraph=True, dynamic=True)(*inputs)
    (graph,) = graphs
    return graph, result
