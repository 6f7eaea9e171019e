"""What is taken into a product: where it is, and that it computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from cgbench.compile.fusion import can_launch_early, fuse
from cgbench.compile.latent_fusion import LATENT_ROWS
from cgbench.compile.operators import (
    ADD_NORM,
    GATED_LINEAR,
    LINEAR_ADD,
    NORM,
    ROTATED_LINEAR,
    gated_linear,
    linear_add,
)
from tests.support.compiled import BATCH_SIZES, MAX_NEW_TOKENS, compiled, decoded
from tests.support.fusion import NEITHER, fused_in, graph_and_result, mixture_ends
from tests.support.tiny import (
    greedy_reference,
    make_checkpoint,
    random_prompts,
    reference_model,
)
from tests.support.tracing import traced_layers

ONE_ROW = ("llama", "qwen3", "qwen3_5", "ernie4_5_moe")
"""Kinds that are traced with one row a request, without a head. Its layers are the target's."""

BOTH = [GATED_LINEAR, LINEAR_ADD]
RESIDUAL = [LINEAR_ADD]


linear = torch.ops.cgbench.linear.default


def traced(folder: Path, name: str) -> list[GraphModule]:
    """Every graph that a compiler is given of a kind of model, made in ``folder``. Tokens are plain
    greedy decoding's."""
    kind, _, form = name.partition(" ")
    shape = SHAPES.get(form, {}) | ({"first_k_dense_replace": 0} if kind == "deepseek_v3" else {})
    make_checkpoint(folder, kind, **shape)
    torch._dynamo.reset()
    with traced_layers() as graphs:
        spec_tokens = 0 if kind in ONE_ROW else 1
        spec = compiled(folder, keeps_latents=form != "expanded")[1]
        tokens = decoded(spec, spec_tokens, 3)
    prompts = random_prompts(max(BATCH_SIZES))[:3]
    assert tokens == greedy_reference(reference_model(folder), prompts, MAX_NEW_TOKENS)
    return graphs


SHAPES: dict[str, dict[str, Any]] = {
    "odd": {"shared_expert_intermediate_size": 24},
    "biased": {"use_bias": True},
}
DENSE = [NORM, ROTATED_LINEAR, ADD_NORM, GATED_LINEAR, LINEAR_ADD]
NORMED_HEADS = [NORM, ADD_NORM, GATED_LINEAR, LINEAR_ADD]
MIXTURES = {"qwen3_moe", "deepseek_v3", "deepseek_v3 expanded", "qwen3_next", "qwen3_next odd"}
MIXTURES |= {"ernie4_5_moe biased"}
LAUNCHED_EARLY = {
    "mimo": True,
    "gemma3_text": True,
    "deepseek_v3": True,
    # Keys are put together in a tensor that is made empty.
    "deepseek_v3 expanded": False,
}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mimo", DENSE),
        ("llama", DENSE),
        # Heads are normed between their product and rotary.
        ("qwen3", NORMED_HEADS),
        # Norms by one more than their weights.
        ("qwen3_5", NORMED_HEADS),
        # Norms behind products, and another activation.
        ("gemma3_text", [NORM, NORM, ADD_NORM, NORM]),
        ("qwen3_moe", [NORM, ADD_NORM]),
        # A shared expert is in the experts' operator; queries and keys of fewer numbers are normed
        # in between, in the expanded form apart.
        ("deepseek_v3", [NORM, LATENT_ROWS, ADD_NORM]),
        ("deepseek_v3 expanded", [NORM, NORM, NORM, ADD_NORM]),
        ("qwen3_next", [NORM, ADD_NORM]),
        # One that the experts' kernels do not take is an MLP. Its last product takes the residual
        # ahead of the experts, if no gate comes between.
        ("ernie4_5_moe biased", [NORM, ADD_NORM, GATED_LINEAR, LINEAR_ADD]),
        ("qwen3_next odd", [NORM, ADD_NORM, GATED_LINEAR]),
    ],
)
def test_what_layers_are_made_of(tmp_path: Path, kind: str, expected: list[Any]) -> None:
    """A mixture's experts take what a layer ends with: the residual, with the shared expert's
    product in it where there is one. A layer that reads what it writes from is launched early."""
    graphs = traced(tmp_path, kind)
    layers = [graph for graph in graphs if "cgbench.attend" in str(graph.graph)]
    assert layers
    for graph in layers:
        assert fused_in(graph) == expected
    ends = [mixture_ends(graph) for graph in graphs]
    assert any(ends) is (kind in MIXTURES)
    assert all(end is not None for each in ends for end in each)
    if kind in LAUNCHED_EARLY:
        with_products = [graph for graph in graphs if has_product(graph)]
        assert {can_launch_early(each) for each in with_products} == {LAUNCHED_EARLY[kind]}


def has_product(graph: GraphModule) -> bool:
    """Whether it is a layer: norms and rotary tables are traced by themselves."""
    return "cgbench.linear" in str(graph.graph)


def random_inputs() -> tuple[Tensor, ...]:
    """``x``, ``gate_up`` and ``down`` of the functions below."""
    return torch.randn(3, 5), torch.randn(8, 5), torch.randn(5, 4)


def gate_and_up(x: Tensor, gate_up: Tensor) -> tuple[Tensor, ...]:
    return linear(x, gate_up, None).split([4, 4], dim=-1)


def as_published(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = gate_and_up(x, gate_up)
    return x + linear(F.silu(gate) * up, down, None)


def the_other_way_round(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = gate_and_up(x, gate_up)
    return linear(up * F.silu(gate), down, None) + x


def another_activation(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = gate_and_up(x, gate_up)
    return x + linear(F.gelu(gate) * up, down, None)


def halves_swapped(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    up, gate = gate_and_up(x, gate_up)
    return x + linear(F.silu(gate) * up, down, None)


def parts_of_one_size(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = linear(x, gate_up, None).split(4, dim=-1)
    return x + linear(F.silu(gate) * up, down, None)


def unequal_parts(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up, _ = linear(x, gate_up, None).split([4, 2, 2], dim=-1)
    return x + linear(F.silu(gate) * up.repeat(1, 2), down, None)


def gate_used_twice(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = gate_and_up(x, gate_up)
    return x + linear(F.silu(gate) * up + gate, down, None)


def product_returned_too(x: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, ...]:
    product = linear(x, gate_up, None)
    gate, up = product.split([4, 4], dim=-1)
    return x + linear(F.silu(gate) * up, down, None), product


def no_product(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x @ gate_up.T).split([4, 4], dim=-1)
    return x + linear(F.silu(gate) * up, down, None)


def activation_returned_too(x: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, ...]:
    gate, up = gate_and_up(x, gate_up)
    gated = F.silu(gate) * up
    return x + linear(gated, down, None), gated


def last_product_returned_too(x: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, ...]:
    product = linear(x[:, :4], down, None)
    return x + product, product


def product_added_to_itself(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    product = linear(x[:, :4], down, None)
    return product + product


def number_added(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return 1 + linear(x[:, :4], down, None)


def writes_in_place(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    mask = torch.zeros_like(x)
    mask.scatter_(1, torch.zeros(3, 1, dtype=torch.long), 1)
    return as_published(x + mask, gate_up, down)


def written_before_the_sum(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    x = x.clone()
    product = linear(x[:, :4], down, None)
    x[:, 0] = 2.0
    return x.clone() + product


def written_before_the_activation(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    x = x.clone()
    gate, up = gate_and_up(x, gate_up)
    x.mul_(2)
    return x + linear(F.silu(gate) * up, down, None)


def wider_residual(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return x.expand(2, 3, 5) + linear(x[:, :4], down, None)


def other_type_of_residual(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return x.double() + linear(x[:, :4], down, None)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (as_published, BOTH),
        (the_other_way_round, BOTH),
        (another_activation, RESIDUAL),
        (halves_swapped, RESIDUAL),
        (parts_of_one_size, RESIDUAL),
        (unequal_parts, RESIDUAL),
        (gate_used_twice, RESIDUAL),
        (product_returned_too, RESIDUAL),
        (no_product, RESIDUAL),
        (activation_returned_too, BOTH),
        (last_product_returned_too, NEITHER),
        (product_added_to_itself, NEITHER),
        (number_added, NEITHER),
        (writes_in_place, BOTH),
        (written_before_the_sum, NEITHER),
        (written_before_the_activation, RESIDUAL),
        (wider_residual, NEITHER),
        (other_type_of_residual, NEITHER),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_taken_over(function: Callable[..., Any], expected: list[Any]) -> None:
    inputs = random_inputs()
    graph, got = graph_and_result(function, inputs, fuse)
    torch.testing.assert_close(got, function(*inputs), rtol=0, atol=0)
    assert fused_in(graph) == expected


def adds_positions(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return x + torch.arange(x.shape[0])[:, None]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (as_published, True),
        (unequal_parts, True),
        (writes_in_place, False),
        (adds_positions, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_only_what_reads_is_launched_early(function: Callable[..., Any], expected: bool) -> None:
    graph, _ = graph_and_result(function, random_inputs())
    assert can_launch_early(graph) == expected


@pytest.mark.parametrize("has_bias", [False, True])
def test_operators_are_what_they_replace(has_bias: bool) -> None:
    x, weight, residual = torch.randn(2, 3, 16), torch.randn(10, 16), torch.randn(2, 3, 10)
    bias = torch.randn(10) if has_bias else None
    product = F.linear(x, weight, bias)
    assert torch.equal(linear_add(x, weight, bias, residual), residual + product)
    gated = F.silu(product[..., :5]) * product[..., 5:]
    assert torch.equal(gated_linear(x, weight, bias), gated)
