"""Latent attention's norms and rotary as one operator: where, and that tokens stay as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from cgbench.compile import fusion
from cgbench.compile.latent_fusion import LATENT_ROWS, fuse_latent, rotated_pairs
from cgbench.compile.operators import ATTEND_LATENT
from cgbench.models.heads.families import DEEPSEEK, MIMO
from tests.support.compiled import MAX_NEW_TOKENS, compiled, decoded
from tests.support.fusion import graph_and_result, mixture_ends
from tests.support.tiny import (
    greedy_reference,
    make_checkpoint,
    random_prompts,
    reference_model,
)
from tests.support.tracing import traced_layers

FUSED = {
    "deepseek_v3": True,
    "glm4_moe_lite": True,
    "deepseek_v3-yarn": True,
    # The query has no down projection.
    "deepseek_v3-plain-query": False,
    # Rotary of halves, not of neighbours.
    "minicpm3": False,
    # Scaled by position between rotary and attention.
    "mistral4": False,
}
ONE_MIXTURE = {"num_hidden_layers": 1, "first_k_dense_replace": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "glm4_moe_lite": {"num_hidden_layers": 1, "mlp_layer_types": ["sparse"]},
    "deepseek_v3-yarn": ONE_MIXTURE,
    "deepseek_v3-plain-query": ONE_MIXTURE,
    "minicpm3": {"num_hidden_layers": 1},
    "mistral4": ONE_MIXTURE,
}
"""Of one layer, but DeepSeek-V3, whose first is dense."""
CASES = ((1, 5), (2, 1))
"""k and batch sizes: one request has forms of its own, and so has one row a request."""


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many inputs a form has before latent attention is fused in it, and after."""
    counts: list[tuple[int, int]] = []

    def counted(attend: Any) -> None:
        before = num_inputs(attend.graph)
        fuse_latent(attend)
        counts.append((before, num_inputs(attend.graph)))

    monkeypatch.setattr(fusion, "fuse_latent", counted)
    return counts


@pytest.mark.parametrize("kind", FUSED)
def test_tokens_are_plain_greedy_decodings(
    tmp_path: Path, kind: str, counts: list[tuple[int, int]]
) -> None:
    """A form keeps inputs that nothing reads any more: its caller hands all of them over."""
    family = DEEPSEEK if kind.startswith(("deepseek", "glm")) else MIMO
    folder = make_checkpoint(tmp_path, kind, seed=3, family=family, **SHAPES.get(kind, {}))
    prompts = random_prompts(5)
    expected = greedy_reference(reference_model(folder), prompts, MAX_NEW_TOKENS)
    torch._dynamo.reset()
    with traced_layers() as graphs:
        _, spec = compiled(folder)
        for spec_tokens, batch_size in CASES if kind == "deepseek_v3" else CASES[:1]:
            assert decoded(spec, spec_tokens, batch_size) == expected[:batch_size]
    layers = [graph for graph in graphs if calls(graph, ATTEND_LATENT)]
    assert layers
    # A mixture's experts take what its layer ends with.
    ends = [end for graph in graphs for end in mixture_ends(graph)]
    assert bool(ends) is (kind != "minicpm3") and None not in ends
    for graph in layers:
        assert bool(calls(graph, LATENT_ROWS)) is FUSED[kind]
        # Then attention has the tables, and rotates its queries.
        (attend,) = calls(graph, ATTEND_LATENT)
        assert (None not in attend.args[-2:]) is FUSED[kind]
        assert bool(calls(graph, torch.cat)) is not FUSED[kind]
    assert counts and all(before == after for before, after in counts)


def num_inputs(graph: torch.fx.Graph) -> int:
    return sum(node.op == "placeholder" for node in graph.nodes)


def calls(graph: GraphModule, target: Any) -> list[Any]:
    return [node for node in graph.graph.nodes if node.target is target]


def by_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos = cos[..., : cos.shape[-1] // 2].unsqueeze(1)
    sin = sin[..., : sin.shape[-1] // 2].unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def by_neighbours_backwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos = cos[..., : cos.shape[-1] // 2].unsqueeze(1)
    sin = sin[..., : sin.shape[-1] // 2].unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, even * cos + odd * sin], dim=-1)


def by_second_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos = cos[..., cos.shape[-1] // 2 :].unsqueeze(1)
    sin = sin[..., sin.shape[-1] // 2 :].unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def of_odd_columns_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos = cos[..., : cos.shape[-1] // 2].unsqueeze(1)
    sin = sin[..., : sin.shape[-1] // 2].unsqueeze(1)
    even, odd = x[..., 1::2], x[..., 0::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (by_neighbours, True),
        (by_neighbours_backwards, False),
        (by_second_halves, False),
        (of_odd_columns_first, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_only_neighbours_that_are_rotated_so_are_found(
    function: Callable[..., Tensor], expected: bool
) -> None:
    torch._dynamo.reset()
    inputs = torch.randn(2, 3, 4, 8), torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    graph, _ = graph_and_result(function, inputs)
    (rotated,) = calls(graph, torch.cat)
    assert (rotated_pairs(rotated) is not None) is expected


def test_attention_of_unknown_inputs_is_left_alone() -> None:
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in "abcd"]
    arguments = (*inputs, 16, 16, None, None, 1.0, None, None, None)
    node = graph.call_function(ATTEND_LATENT, arguments)
    fuse_latent(node)
    assert node.args == arguments
