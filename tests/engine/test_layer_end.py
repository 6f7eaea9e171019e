"""The end of a layer as one operator: where it is put, and that it computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, symbolic_trace

from cgbench.engine import compiling
from cgbench.engine.layer_end import use_layer_end
from cgbench.engine.operators import LAYER_END, layer_end
from tests.engine.test_compiling import compiled, decoded
from tests.tiny import make_checkpoint

GATED, RESIDUAL_ALONE, NEITHER = [True], [False], []

linear = torch.ops.cgbench.linear.default


def ends_of(graph: GraphModule) -> list[bool]:
    """Of each operator in ``graph`` whether the activation is part of it."""
    return [node.args[4] for node in graph.graph.nodes if node.target is LAYER_END]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """Every graph that a compiler is given."""
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _: object) -> GraphModule:
        graphs.append(use_layer_end(graph))
        return graph

    monkeypatch.setattr(compiling, "compile_layer", keep)
    torch._dynamo.reset()
    return graphs


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mimo", GATED),
        ("llama", GATED),
        ("qwen3_5", GATED),
        # Norms behind the MLP, experts: nothing to take over.
        ("gemma3_text", NEITHER),
        ("qwen3_moe", NEITHER),
    ],
)
def test_where_layers_end_so(
    traced: list[GraphModule], tmp_path: Path, kind: str, expected: list[bool]
) -> None:
    decoded(compiled(make_checkpoint(tmp_path, kind))[1], 1, 3)
    layers = [graph for graph in traced if has_product(graph)]
    assert layers
    for graph in layers:
        assert ends_of(graph) == expected


def has_product(graph: GraphModule) -> bool:
    """Whether it is a layer: norms and rotary tables are traced by themselves."""
    return "cgbench.linear" in str(graph.graph)


def halves(packed: Tensor) -> tuple[Tensor, ...]:
    return packed.split([4, 4], dim=-1)


def as_published(packed: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    gate, up = halves(packed)
    return residual + linear(F.silu(gate) * up, weight, None)


def the_other_way_round(packed: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    gate, up = halves(packed)
    return linear(up * F.silu(gate), weight, None) + residual


def another_activation(packed: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    gate, up = halves(packed)
    return residual + linear(F.gelu(gate) * up, weight, None)


def halves_swapped(packed: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    up, gate = halves(packed)
    return residual + linear(F.silu(gate) * up, weight, None)


def unequal_parts(packed: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    gate, up, _ = packed.split([4, 2, 2], dim=-1)
    return residual + linear(F.silu(gate) * up.repeat(1, 2), weight, None)


def activation_used_twice(packed: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
    gate, up = halves(packed)
    gated = F.silu(gate) * up
    return residual + linear(gated, weight, None), gated


def product_used_twice(packed: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
    product = linear(packed[:, :4], weight, None)
    return residual + product, product


def product_twice_itself(packed: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    product = linear(packed[:, :4], weight, None)
    return product + product


def no_tensor_added(packed: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    return 1 + linear(packed[:, :4], weight, None)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (as_published, GATED),
        (the_other_way_round, GATED),
        (another_activation, RESIDUAL_ALONE),
        (halves_swapped, RESIDUAL_ALONE),
        (unequal_parts, RESIDUAL_ALONE),
        (activation_used_twice, RESIDUAL_ALONE),
        (product_used_twice, NEITHER),
        (product_twice_itself, NEITHER),
        (no_tensor_added, NEITHER),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_taken_over(function: Callable[..., Any], expected: list[bool]) -> None:
    inputs = torch.randn(3, 8), torch.randn(5, 4), torch.randn(3, 5)
    graph = use_layer_end(symbolic_trace(function))
    assert ends_of(graph) == expected
    torch.testing.assert_close(graph(*inputs), function(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_operator_is_what_it_replaces(is_gated: bool, has_bias: bool) -> None:
    x, weight = torch.randn(2, 3, 16), torch.randn(5, 8 if is_gated else 16)
    bias = torch.randn(5) if has_bias else None
    residual = torch.randn(2, 3, 5)
    rows = F.silu(x[..., :8]) * x[..., 8:] if is_gated else x
    expected = residual + F.linear(rows, weight, bias)
    assert torch.equal(layer_end(x, weight, bias, residual, is_gated), expected)
