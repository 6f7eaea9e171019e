"""The replay of a request trace: against going iteration by iteration, and what it reports."""

import random
from dataclasses import replace
from math import ceil

import pytest

from cgbench.errors import PlanError
from cgbench.planning import Costs, Curve, PlanRequest, plan
from cgbench.planning.admission import Admission, admit
from cgbench.planning.costs import Drafts
from cgbench.planning.phase_optimum import cost_by_batch_size
from cgbench.planning.phases import phases_of
from cgbench.planning.request_trace import RequestTrace

NS_PER_MS = 1_000_000


def measured(eager: float = 20.0, graph: float = 2.0) -> Costs:
    """Graphs grow from 2 ms at one request by 0.1 ms each; eager takes the same at any size."""
    return Costs(
        "ms",
        Curve(((1, graph), (11, graph + 1.0))),
        Curve(((1, eager),)),
        drafts=Drafts(Curve(((1, 0.5),)), Curve(((1, 4.0),))),
    )


def asked(policy: str, k: int, most: int, **fields: object) -> PlanRequest:
    return PlanRequest(k, most, policy, costs=measured(), **fields)


def replayed(request: PlanRequest, trace: RequestTrace, length: float) -> Admission:
    return admit(request, phases_of(request, plan(request)), trace, length)


def some_requests(seed: int, count: int) -> RequestTrace:
    rng = random.Random(seed)
    arrivals = sorted(rng.randrange(0, 400 * NS_PER_MS) for _ in range(count))
    outputs = [rng.choice([1, 2, 5, rng.randint(1, 60)]) for _ in range(count)]
    outputs[0] = 9
    first = arrivals[0]
    return RequestTrace("made", tuple(at - first for at in arrivals), (8,) * count, tuple(outputs))


def step_by_step(
    request: PlanRequest, trace: RequestTrace, length: float
) -> tuple[dict[int, int], list[float]]:
    """The reference: one iteration at a time, every running request by name."""
    found = phases_of(request, plan(request))
    cost = cost_by_batch_size(request, found)
    waiting = list(enumerate(trace.arrival_ns))
    running: dict[int, tuple[int, int]] = {}
    now, counts, tpot = 0, dict[int, int](), []
    while waiting or running:
        if not running:
            now = max(now, waiting[0][1])
        while waiting and waiting[0][1] <= now and len(running) < request.max_batch_size:
            number, _ = waiting.pop(0)
            if left := ceil((trace.output_tokens[number] - 1) / length):
                running[number] = (left, now)
        if not running:
            continue
        size = len(running)
        now += round(cost(size) * NS_PER_MS)
        counts[size] = counts.get(size, 0) + 1
        for number, (left, admitted) in list(running.items()):
            if left > 1:
                running[number] = (left - 1, admitted)
                continue
            del running[number]
            tpot.append((now - admitted) / (trace.output_tokens[number] - 1) / NS_PER_MS)
    return counts, sorted(tpot)


@pytest.mark.parametrize("seed", range(40))
def test_the_replay_equals_going_step_by_step(seed: int) -> None:
    rng = random.Random(1000 + seed)
    policy = rng.choice(["vllm-0.33", "tensorrt-llm-1.3", "nano-vllm", "fastdeploy-2.5"])
    request = asked(policy, rng.randint(0, 4), rng.randint(1, 12))
    trace = some_requests(seed, rng.randint(1, 60))
    length = 1 + rng.random() * request.spec_tokens
    found = replayed(request, trace, length)
    counts, tpot = step_by_step(request, trace, length)
    assert dict(found.iterations) == counts
    assert list(found.tpot_ms) == tpot


def test_one_request_alone() -> None:
    """9 tokens, of which prefill gives one: 8 iterations of 2 ms at k = 0."""
    trace = RequestTrace("one", (0,), (4,), (9,))
    found = replayed(asked("exact", 0, 2), trace, 1.0)
    assert found.iterations == ((1, 8),)
    assert (found.total_ms, found.tpot_ms, found.padding_ms) == (16.0, (2.0,), 0.0)
    assert (found.in_graph_share, found.tenths) == (1.0, (1.0,) * 10)


def test_padding_is_counted_in_time() -> None:
    """3 requests run in the bucket of 4: 0.1 ms more than 3 would take, 10 times."""
    trace = RequestTrace("three", (0, 0, 0), (4, 4, 4), (11, 11, 11))
    found = replayed(asked("explicit", 0, 4, capture_sizes=(4,)), trace, 1.0)
    assert found.padding_ms == pytest.approx(1.0)


def steady(rate_per_s: float, count: int, tokens: int) -> RequestTrace:
    gap = round(1e9 / rate_per_s)
    return RequestTrace(
        "steady", tuple(n * gap for n in range(count)), (8,) * count, (tokens,) * count
    )


def test_a_batch_that_leaves_its_graphs_does_not_come_back() -> None:
    """Graphs to 4 requests reach 4 / 2.3 ms = 1,739 tokens/s; eager at most 8 / 20 ms = 400.

    1,000 tokens arrive a second. A burst of 8 pushes the batch out of its graphs, for good.
    """
    calm = steady(1000 / 20, 400, 20)
    burst = replace(calm, arrival_ns=(0,) * 8 + calm.arrival_ns[8:])
    request = asked("explicit", 0, 8, capture_sizes=(1, 2, 4))
    state = replayed(request, burst, 1.0).absorbing
    assert state is not None and state.above == 4
    assert state.eager == pytest.approx(400)
    assert state.in_graphs == pytest.approx(4 / 2.3 * 1e3)
    assert state.eager < state.arriving <= state.in_graphs
    stuck, free = replayed(request, burst, 1.0), replayed(request, calm, 1.0)
    assert stuck.in_graph_share < 0.3 < 0.99 < free.in_graph_share
    assert stuck.tenths[-2] == 8


def test_there_is_no_absorbing_state_where_every_batch_has_a_graph() -> None:
    assert replayed(asked("exact", 0, 8), steady(50, 100, 20), 1.0).absorbing is None


def test_there_is_none_where_eager_keeps_up() -> None:
    request = asked("explicit", 0, 8, capture_sizes=(1, 2, 4))
    assert replayed(request, steady(10, 100, 20), 1.0).absorbing is None


def test_the_replay_gives_the_workload() -> None:
    found = replayed(asked("exact", 0, 4), some_requests(3, 50), 1.0)
    workload = found.workload("made")
    assert dict(workload.weights) == dict(found.iterations)


def test_percentiles_are_of_requests() -> None:
    found = replayed(asked("exact", 0, 4), some_requests(3, 50), 1.0)
    assert found.tpot_percentile(100) == found.tpot_ms[-1]
    assert found.tpot_percentile(0) == found.tpot_ms[0]
    assert found.tpot_percentile(50) == found.tpot_ms[(len(found.tpot_ms) + 1) // 2 - 1]


def test_drafts_without_a_graph_make_the_iteration_dearer() -> None:
    """FastDeploy's drafts 2..k are eager at every batch size: none of its iterations counts as
    captured."""
    found = replayed(asked("fastdeploy-2.5", 2, 4), some_requests(1, 30), 2.0)
    assert found.in_graph_share == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"costs": None}, "needs --costs RUN_DIR"),
        ({"costs": Costs.in_tokens(1)}, "needs --costs RUN_DIR"),
    ],
)
def test_times_are_needed(change: dict[str, object], message: str) -> None:
    request = replace(asked("exact", 0, 4), **change)
    with pytest.raises(PlanError, match=message):
        replayed(request, some_requests(1, 5), 1.0)


@pytest.mark.parametrize("length", [0.5, 1.5])
def test_a_length_that_k_does_not_reach_is_refused(length: float) -> None:
    with pytest.raises(PlanError, match=r"--acceptance-length .* must be 1 to 1"):
        replayed(asked("exact", 0, 4), some_requests(1, 5), length)


def test_requests_that_end_with_prefill_run_no_iteration() -> None:
    with pytest.raises(PlanError, match="every request of the trace ends with its first token"):
        replayed(asked("exact", 0, 4), RequestTrace("x", (0, 5), (1, 1), (1, 1)), 1.0)


def test_a_hundred_thousand_requests_are_replayed_event_by_event() -> None:
    """The work is two events a request, whatever the number of iterations: no more steps."""
    rng = random.Random(7)
    count = 100_000
    arrivals = sorted(rng.randrange(0, 10**12) for _ in range(count))
    outputs = tuple(rng.randint(2, 800) for _ in range(count))
    trace = RequestTrace("large", tuple(at - arrivals[0] for at in arrivals), (1,) * count, outputs)
    found = replayed(asked("sglang-0.5.23", 0, 256), trace, 1.0)
    assert len(found.tpot_ms) == count
    assert sum(size * n for size, n in found.iterations) == sum(outputs) - count
    assert found.num_iterations > found.num_events
    assert found.num_events <= 2 * count
