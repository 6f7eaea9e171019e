"""The slow-down that the gate's trial plants: in every graph of a timed scope, and nowhere else."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from cgbench.engine import deployment, iteration
from cgbench.words import Scope
from gate import plant
from gate.plant import Spot


@dataclass(frozen=True)
class Rows:
    """What is planted by."""

    spec_tokens: int = 3
    batch_size: int = 8


CYCLES = {
    Spot(Scope.PHASE, 3, 8): 500,
    Spot(Scope.ITERATION, 3, 8): 700,
}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Cycles of the kernels that were launched. What is planted goes when the test ends."""
    cycles: list[int] = []
    monkeypatch.setattr(torch.cuda, "_sleep", cycles.append)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(iteration, "verify", lambda spec, rows: "logits")
    monkeypatch.setattr(deployment, "capture_plan", deployment.__dict__["capture_plan"])
    yield cycles


def capture_plan(spec: Any, state: Any, plan: Any, scope: Scope) -> str:
    return f"{scope}: {iteration.verify(spec, state)}"


def test_a_graph_of_a_timed_scope_holds_its_own_kernel(
    slept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plant, "capture_plan", capture_plan)
    plant.plant_kernels(CYCLES)
    captured = deployment.__dict__["capture_plan"]
    assert captured(None, Rows(), None, Scope.PHASE) == "phase: logits"
    assert captured(None, Rows(), None, Scope.ITERATION) == "iteration: logits"
    assert slept == [500, 700]


def test_other_graphs_hold_none(slept: list[int]) -> None:
    plant.plant_kernels(CYCLES)
    # An instrumented graph: it is captured, but by no plan.
    iteration.verify(None, Rows())  # type: ignore[arg-type]
    assert slept == []


def test_a_wait_is_as_long_as_it_is_said_to_be(
    slept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(100))
    monkeypatch.setattr(plant.time, "perf_counter", lambda: next(now))
    plant.plant_waits({Spot(Scope.EAGER, 3, 8): 5.0})
    iteration.verify(None, Rows())  # type: ignore[arg-type]
    assert next(now) == 6
    iteration.verify(None, Rows(batch_size=1))  # type: ignore[arg-type]
    assert next(now) == 9
