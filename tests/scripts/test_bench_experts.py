"""``scripts/trials/bench_experts.py``: what it routes, what it counts, and what it compares."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.integrations.moe import grouped_mm_experts_forward

import bench_experts
from bench_experts import (
    SHAPES,
    Layer,
    Shape,
    as_module,
    balanced,
    make_shared,
    named_shapes,
    skewed,
    timed_ways,
)
from cgbench.kernels.moe.expert_products import Choice, Experts, SharedExpert, apply_by_torch
from tests.support.interpreter import run_interpreted

SHAPE = Shape(num_experts=32, top_k=4, hidden=16, intermediate=8)


def layer_of(*choices: list[list[int]], shape: Shape = SHAPE) -> Layer:
    chosen = [torch.tensor(each) for each in choices]
    experts = Experts(torch.randn(32, 16, 16), torch.randn(32, 16, 8))
    weights = [torch.rand(each.shape) for each in chosen]
    return Layer(
        shape,
        experts,
        torch.randn(len(chosen[0]), 16),
        [Choice(*each) for each in zip(chosen, weights, strict=True)],
        [large_shared(shape) for _ in choices] if shape.pieces else [],
    )


def large_shared(shape: Shape) -> SharedExpert:
    """With weights as large as the experts', so that a token's sum shows it."""
    shared = make_shared(shape, "cpu", torch.float32)
    gate = None if shared.gate is None else 50 * shared.gate
    return SharedExpert(50 * shared.gate_up, 50 * shared.down, gate)


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


def test_bytes_are_the_shared_expert_s_too() -> None:
    layer = layer_of([[0, 1, 2, 3]], shape=SHAPE._replace(pieces=2))
    assert layer.bytes_read == (4 + 2) * 3 * 16 * 8 * 2


def worst_difference() -> float:
    """Between the ways of a layer with a shared expert, with a gate and without."""
    worst = 0.0
    torch.compiler.set_stance("force_eager")
    for has_gate in (False, True):
        shape = SHAPE._replace(pieces=2, has_gate=has_gate)
        layer = layer_of([[0, 1, 2, 3], [2, 9, 4, 5], [31, 3, 1, 0]], shape=shape)
        calls = dict(timed_ways(layer))
        assert [*calls] == ["shared inside", "shared apart"]
        results: list[Any] = [call() for call in calls.values()]
        first = apply_by_torch(
            replace(layer.experts, shared=layer.shared[0]), layer.x, layer.choices[0], layer.x
        )
        assert float((first - layer.x).abs().max()) > 1
        errors = [float((each[0] - first).norm() / first.norm()) for each in results]
        worst = max(worst, *errors)
    return worst


def test_the_ways_of_a_layer_with_a_shared_expert_compute_the_same() -> None:
    pytest.importorskip("triton")
    code = (
        f"import sys\nsys.path[:0] = {sys.path!r}\nfrom {__name__} import worst_difference\n"
        "print('alike', worst_difference() < 3e-6)"
    )
    assert "alike True" in run_interpreted(code)


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
