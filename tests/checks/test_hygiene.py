"""Graph hygiene on plain data; with graphs it is in ``tests/gpu/test_hygiene.py``."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cgbench.checks import hygiene
from cgbench.checks.findings import Answer
from cgbench.checks.hygiene import ledger_fault, run, steady_growth
from cgbench.checks.subject import Subject
from cgbench.engine.addresses import captured_addresses
from cgbench.engine.graph_cost import GraphCost
from cgbench.engine.graphs import CapturedGraph, GraphSet, phases_of
from cgbench.engine.iteration import no_mark
from cgbench.engine.runner import GraphRunner
from cgbench.floor.telemetry import NoTelemetry
from cgbench.kernels.attention import LayerKv
from cgbench.planning import PlanRequest, plan
from cgbench.words import Scope
from tests.support.audited import make_tiny_subject
from tests.support.example import make_cost
from tests.support.tiny import make_checkpoint

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
        ([(10, None), (12, 100), (14, 105)], 4),  # others were on the device
        ([(10, None), (10, 100), (10, 105)], 0),
    ],
)
def test_memory_that_grows_at_every_step_is_told(seen: list[Any], growth: int) -> None:
    assert steady_growth(seen) == growth


@pytest.mark.parametrize(("device", "word"), [("cpu", "CUDA"), ("cuda", "--scopes")])
def test_without_graphs_it_is_not_run(device: str, word: str) -> None:
    target = SimpleNamespace(device=torch.device(device))
    subject = SimpleNamespace(graph_sets={}, spec=SimpleNamespace(target=target))
    finding = run(cast(Any, subject))
    assert finding.answer is Answer.NOT_RUN
    assert finding.reason is not None and word in finding.reason


class EagerGraphs(GraphSet):
    """Stands for captured graphs: a replay launches the bucket's phases from the host."""

    def __init__(self, subject: Subject, scope: Scope) -> None:
        super().__init__(scope, K, captured_addresses(subject.spec, subject.states[K]))
        self.subject = subject
        for size in sorted(subject.plans[K].batch_sizes, reverse=True):
            facts = {"spec_tokens": K, "bucket": size, "num_tokens": size * (K + 1), "nodes": 7}
            costs = [make_cost(phase, **facts) for phase in phases_of(scope, K)]
            self.add(size, [CapturedGraph(cast(Any, None), cost) for cost in costs])

    def replay(self, batch_size: int) -> None:
        for phase in phases_of(self.scope, K).values():
            phase(self.subject.spec, self.subject.states[K].rows(batch_size), no_mark)


@pytest.fixture
def subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Subject:
    """A subject with stand-in graphs, on a device whose memory and allocations stay as they are."""
    bare = make_tiny_subject(make_checkpoint(tmp_path, "mimo", seed=3), spec_tokens=(K,))
    scope = getattr(request, "param", Scope.PHASE)
    graphs = EagerGraphs(bare, scope)
    runner = GraphRunner(bare.spec, bare.states[K], bare.plans[K], graphs)
    monkeypatch.setattr(hygiene, "REPLAYS", 8)
    monkeypatch.setattr(hygiene, "num_nodes", lambda _: 7)
    monkeypatch.setattr(hygiene, "_memory", lambda _: (10, 100))
    monkeypatch.setattr(hygiene, "_num_allocations", lambda: 3)
    monkeypatch.setattr(hygiene, "_no_syncs", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    key = (K, scope)
    return replace(bare, graph_sets={key: graphs}, runners={**bare.runners, key: runner})


def told(subject: Subject) -> str:
    finding = run(subject)
    assert finding.answer is Answer.WRONG and finding.difference is not None
    assert finding.difference.where.spec_tokens == K
    return finding.difference.text


@pytest.mark.parametrize("subject", [Scope.PHASE, Scope.ITERATION], indirect=True)
def test_graphs_as_planned_hold(subject: Subject) -> None:
    finding = run(subject)
    assert finding.answer is Answer.HOLDS, finding.difference
    (graphs,) = subject.graph_sets.values()
    num_phases = 3 if graphs.scope is Scope.PHASE else 1
    assert finding.figures["graphs"] == 2 * num_phases
    assert finding.figures[f"nodes_k3_{graphs.scope}"] == 7 * num_phases


def test_a_reassigned_buffer_is_told_by_its_name(subject: Subject) -> None:
    state = subject.states[K]
    state.full = replace(state.full, seq_len=state.full.seq_len.clone())
    assert "state.seq_len was reassigned" in told(subject)


def test_views_of_a_reassigned_buffer_are_told(subject: Subject) -> None:
    state = subject.states[K]
    state._rows[2] = replace(state.rows(2), drafts=state.rows(2).drafts.clone())
    assert told(subject) == "state.drafts: its first rows moved"


def test_a_reassigned_kv_tensor_is_told_by_its_name(subject: Subject) -> None:
    kv = subject.spec.cache.layers[0]
    subject.spec.cache.layers[0] = LayerKv(kv.keys.clone(), kv.values)
    assert "kv.0.keys was reassigned" in told(subject)


@pytest.mark.parametrize(("other", "words"), [(5, "was computed too"), (2, "was not computed")])
def test_another_bucket_replayed_is_told(subject: Subject, other: int, words: str) -> None:
    runner = cast(GraphRunner, subject.runners[K, Scope.PHASE])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "step", lambda _: runner.graphs.replay(other))
        assert words in told(subject)


def readings(*values: Any) -> Callable[..., Any]:
    left = [*values]
    return lambda *_: left.pop(0) if len(left) > 1 else left[0]


def test_growing_memory_is_told(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    grown = [(10, 100 + 50 * stretch) for stretch in range(hygiene.MOST_STRETCHES + 1)]
    monkeypatch.setattr(hygiene, "_memory", readings(*grown))
    assert told(subject) == "memory grew by 300 bytes over 24 replays"


def test_what_another_process_takes_is_no_growth(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hygiene, "_memory", readings((10, 100), (10, 150), (10, 200), (10, 200)))
    assert hygiene.run(subject).answer is Answer.HOLDS


def test_an_allocating_replay_is_told(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hygiene, "_num_allocations", readings(3, 5))
    assert told(subject) == "a replay allocates 2 tensors"


def test_a_synchronising_replay_is_told(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def syncs() -> Any:
        raise RuntimeError("called a synchronizing CUDA operation\nat")

    monkeypatch.setattr(hygiene, "_no_syncs", syncs)
    assert told(subject) == "a replay synchronises: called a synchronizing CUDA operation"


def test_other_nodes_than_at_the_capture_are_told(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hygiene, "num_nodes", lambda _: 8)
    assert told(subject) == "the verify graph has 8 nodes, 7 at its capture"


@pytest.mark.parametrize(("processes", "in_use"), [((), 70), ((1,), 70), ((1, 2), None)])
def test_the_device_s_memory_is_not_judged_where_others_are_on_it(
    monkeypatch: pytest.MonkeyPatch, processes: tuple[int, ...], in_use: int | None
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 10)
    reading = SimpleNamespace(processes=frozenset(processes))
    telemetry = cast(Any, SimpleNamespace(read=lambda: reading))
    assert hygiene._memory(telemetry) == (10, in_use)
    assert hygiene._memory(NoTelemetry()) == (10, 70)
