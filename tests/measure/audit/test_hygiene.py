"""Graph hygiene on plain data; with graphs it is in ``tests/gpu/test_hygiene.py``."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cgbench.engine.graphs import phases_of
from cgbench.measure.audit.findings import Verdict
from cgbench.measure.audit.hygiene import ledger_fault, run, steady_growth
from cgbench.planning import PlanRequest, plan
from cgbench.report.schema import GraphCost, Scope
from tests.report.example import make_cost

K = 3
PLAN = plan(PlanRequest(spec_tokens=K, max_batch_size=8))  # 1, 2, 4, 8
CAPTURED = (8, 4, 2, 1)


def ledger(scope: Scope) -> list[GraphCost]:
    return [
        make_cost(phase, spec_tokens=K, bucket=size, num_tokens=size * (K + 1))
        for size in CAPTURED
        for phase in phases_of(scope, K)
    ]


@pytest.mark.parametrize("scope", [Scope.PHASE, Scope.ITERATION])
def test_the_plans_own_ledger_is_right(scope: Scope) -> None:
    assert ledger_fault(CAPTURED, ledger(scope), PLAN, scope) is None


@pytest.mark.parametrize(
    "captured", [(1, 2, 4, 8), (8, 4, 2), (8, 4, 2, 2, 1), (16, 8, 4, 2, 1), ()]
)
def test_another_order_and_a_missing_or_double_bucket_are_told(captured: tuple[int, ...]) -> None:
    fault = ledger_fault(captured, ledger(Scope.ITERATION), PLAN, Scope.ITERATION)
    assert fault is not None and str(captured) in fault and str(CAPTURED) in fault


Edit = Callable[[list[GraphCost]], list[GraphCost]]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda costs: costs[:-1], "11 graphs"),
        (lambda costs: [*costs, costs[-1]], "13 graphs"),
        (lambda costs: [replace(costs[0], num_tokens=8), *costs[1:]], "8 requests, 8 tokens"),
        (lambda costs: [costs[1], costs[0], *costs[2:]], "a draft_first graph of 8"),
        (lambda costs: [*costs[3:], *costs[:3]], "a verify graph of 4"),
    ],
    ids=["a graph lost", "a graph twice", "tokens of k = 0", "phases swapped", "small first"],
)
def test_a_ledger_that_is_not_the_plans_is_told(edit: Edit, words: str) -> None:
    fault = ledger_fault(CAPTURED, edit(ledger(Scope.PHASE)), PLAN, Scope.PHASE)
    assert fault is not None and words in fault


@pytest.mark.parametrize(
    ("seen", "growth"),
    [
        ([(10, 100), (10, 100), (10, 100)], 0),
        ([(10, 100), (12, 100), (14, 100)], 4),
        ([(10, 100), (10, 103), (10, 107)], 7),
        ([(10, 100), (10, 900), (10, 900)], 0),  # another process took memory once
        ([(10, 100), (8, 90), (6, 80)], 0),
    ],
)
def test_memory_that_grows_at_every_step_is_told(seen: list[Any], growth: int) -> None:
    assert steady_growth(seen) == growth


@pytest.mark.parametrize(("device", "word"), [("cpu", "CUDA"), ("cuda", "--scopes")])
def test_without_graphs_it_is_not_run(device: str, word: str) -> None:
    target = SimpleNamespace(device=torch.device(device))
    subject = SimpleNamespace(graph_sets={}, spec=SimpleNamespace(target=target))
    finding = run(cast(Any, subject))
    assert finding.verdict is Verdict.NOT_RUN
    assert finding.reason is not None and word in finding.reason
