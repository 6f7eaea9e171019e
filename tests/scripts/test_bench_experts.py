"""``scripts/trials/bench_experts.py``: what it routes, what it counts, and what it compares."""

import sys
from collections.abc import Callable

import pytest
import torch
from transformers.integrations.moe import grouped_mm_experts_forward

import bench_experts
from bench_experts import SHAPES, Layer, Shape, as_module, balanced, named_shapes, skewed
from cgbench.kernels.moe.expert_products import Choice, Experts, apply_by_torch

SHAPE = Shape(num_experts=32, top_k=4, hidden=16, intermediate=8)


def layer_of(*choices: list[list[int]]) -> Layer:
    chosen = [torch.tensor(each) for each in choices]
    experts = Experts(torch.randn(32, 16, 16), torch.randn(32, 16, 8))
    weights = [torch.rand(each.shape) for each in chosen]
    return Layer(
        SHAPE,
        experts,
        torch.randn(len(chosen[0]), 16),
        [Choice(*each) for each in zip(chosen, weights, strict=True)],
    )


@pytest.mark.parametrize("route", [balanced, skewed])
def test_a_token_takes_no_expert_twice(route: Callable[..., torch.Tensor]) -> None:
    chosen = route(SHAPE, 200, "cpu")
    assert chosen.shape == (200, 4)
    assert all(len(set(row)) == 4 for row in chosen.tolist())


def test_skewed_routing_has_half_of_the_experts_among_an_eighth() -> None:
    torch.manual_seed(0)
    assert ((skewed(SHAPE, 200, "cpu") < 4).sum(1) == 2).all()
    assert 0.05 < (balanced(SHAPE, 200, "cpu") < 4).float().mean() < 0.2


def test_bytes_are_those_of_the_distinct_experts_of_a_call() -> None:
    """Three matrices of two bytes a number, of six experts and of four."""
    layer = layer_of([[0, 1, 2, 3], [2, 3, 4, 5]], [[7, 8, 9, 10], [10, 9, 8, 7]])
    assert layer.bytes_read == 5 * 3 * 16 * 8 * 2


def test_transformers_way_computes_what_ours_does() -> None:
    layer = layer_of([[0, 1, 2, 3], [2, 9, 4, 5], [31, 3, 1, 0]])
    (choice,) = layer.choices
    theirs = layer.x + grouped_mm_experts_forward(
        as_module(layer.experts), layer.x, choice.chosen, choice.weights
    )
    torch.testing.assert_close(apply_by_torch(layer.experts, layer.x, choice, layer.x), theirs)


def test_every_shape_can_be_asked_for_in_one_list() -> None:
    assert named_shapes(",".join(SHAPES)) == [*SHAPES]


def test_an_unknown_shape_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_experts.py", "--shapes", "glm-4.5-air,half"])
    with pytest.raises(SystemExit) as ended:
        bench_experts.main()
    assert ended.value.code == 2
    assert "--shapes: 'half' is none of qwen3-30b-a3b" in capsys.readouterr().err
