"""The optimal planner against every possible choice, and against every engine's list."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from math import inf
from random import Random
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgbench.errors import PlanError
from cgbench.planning import POLICIES, Concurrency, Costs, Curve, PlanRequest, plan
from cgbench.planning.budgets import solve_within
from cgbench.planning.expected import costs_of, expected_cost, weights_of
from cgbench.planning.optimal import Problem, least_costs, solve

ENGINES = sorted(POLICIES.keys() - {"explicit", "optimal"})
INSTANCES = 800

Resources = list[tuple[list[float], float]]


def cost_of(problem: Problem, sizes: Sequence[int]) -> float:
    """By the definition, a batch size at a time."""
    total = 0.0
    for size, weight in enumerate(problem.weights, start=1):
        bucket = next((each for each in sizes if each >= size), None)
        cost = problem.graph[bucket - 1] if bucket else problem.eager[size - 1]
        total += weight * cost
    return total


def choices(most: int) -> Iterator[tuple[int, ...]]:
    sizes = range(1, most + 1)
    return chain.from_iterable(combinations(sizes, count) for count in range(most + 1))


def fits(sizes: Sequence[int], resources: Resources) -> bool:
    return all(
        sum(taken[size - 1] for size in sizes) <= limit * (1 + 1e-12) for taken, limit in resources
    )


def random_problem(random: Random) -> Problem:
    """Costs that need not grow with the batch size, weights that may be 0 and plateaus."""
    most = random.randint(1, 7)
    draw: Callable[[], float] = random.choice([random.random, lambda: random.randint(0, 4)])
    return Problem(
        weights=[random.choice([0, 1, random.random()]) for _ in range(most)],
        graph=[draw() for _ in range(most)],
        eager=[draw() * random.randint(1, 6) for _ in range(most)],
    )


def random_resources(random: Random, most: int) -> Resources:
    return [
        ([float(random.randint(0, 9)) for _ in range(most)], float(random.randint(0, 30))),
        ([random.random() for _ in range(most)], random.random() * most),
        ([1.0] * most, float(random.randint(0, most))),
    ][: random.randint(1, 3)]


def test_it_equals_brute_force() -> None:
    random = Random(0)
    for _ in range(INSTANCES):
        problem = random_problem(random)
        max_graphs = random.randint(0, problem.size)
        found = solve(problem, max_graphs)
        best = min(cost_of(problem, c) for c in choices(problem.size) if len(c) <= max_graphs)
        assert len(found) <= max_graphs
        assert cost_of(problem, found) == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert least_costs(problem, max_graphs)[-1] == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_it_equals_brute_force_under_budgets() -> None:
    random = Random(1)
    for _ in range(INSTANCES // 2):
        problem = random_problem(random)
        resources = random_resources(random, problem.size)
        found = solve_within(problem, resources)
        allowed = (c for c in choices(problem.size) if fits(c, resources))
        best = min(cost_of(problem, choice) for choice in allowed)
        assert fits(found, resources)
        assert cost_of(problem, found) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_budgets_agree_with_the_layers_where_only_graphs_are_limited() -> None:
    """Too large for brute force: the two solvers are written apart."""
    random = Random(2)
    for most in (40, 90):
        graph = [5 + 0.1 * size * random.random() for size in range(most)]
        problem = Problem([random.random() for _ in graph], graph, [20.0] * most)
        taken = [1e6 + 1e4 * size for size in range(most)]
        found = solve_within(problem, [(taken, 1e12), ([1.0] * most, 6.0)])
        assert cost_of(problem, found) == pytest.approx(least_costs(problem, 6)[-1])


def test_memory_that_grows_with_the_bucket() -> None:
    """Smaller graphs are worth more here: the memory budget, and not the count, decides."""
    most = 64
    graph = [5 + 0.02 * size for size in range(1, most + 1)]
    problem = Problem([0.97**size for size in range(most)], graph, [30.0] * most)
    taken = [2e6 + 2e5 * size for size in range(1, most + 1)]
    found = solve_within(problem, [(taken, 60e6)])
    assert sum(taken[size - 1] for size in found) <= 60e6
    by_count = solve(problem, len(found))
    assert sum(taken[size - 1] for size in by_count) > 60e6
    assert cost_of(problem, by_count) < cost_of(problem, found) < least_costs(problem, 3)[-1]


def test_budgets_of_a_measured_engine_are_proved_soon() -> None:
    """256 requests, memory and time both short: the prices, not the labels, must do the work."""
    costs = Costs(
        "ms",
        graph=Curve(((1, 5.0), (8, 5.3), (64, 9.8), (256, 24.0))),
        eager=Curve(((1, 30.0), (64, 42.0), (256, 60.0))),
        memory_bytes=Curve(((1, 12e6), (8, 15e6), (64, 40e6), (256, 130e6))),
        capture_s=Curve(((1, 0.35), (8, 0.36), (64, 0.41), (256, 0.6))),
    )
    workload = Concurrency.parse("geometric:30")
    request = PlanRequest(
        3,
        256,
        "optimal",
        costs=costs,
        concurrency=workload,
        max_memory_bytes=300_000_000,
        max_capture_s=5.0,
    )
    assert costs.memory_bytes
    found = plan(request)
    assert sum(map(costs.memory_bytes, found.batch_sizes)) <= 300e6
    assert found.batch_sizes == (8, 15, 23, 33, 47, 66, 98, 170)


def test_worked_example() -> None:
    """Two graphs for batch sizes 1..4, alike, at k = 3: 2 and 4 cost (8 + 8 + 16 + 16) / 4 = 12.

    1 and 4 cost (4 + 3 * 16) / 4 = 13, 3 and 4 cost 13, and leaving 4 eager, at 5 * 16, more.
    """
    request = PlanRequest(3, 4, "optimal", max_graphs=2)
    found = plan(request)
    assert found.batch_sizes == (2, 4)
    assert expected_cost(found, weights_of(request), costs_of(request)) == 12


def test_eager_above_the_top_is_chosen_where_it_is_cheaper() -> None:
    """Batch size 8 comes once in a thousand: padding all the others to it would cost more."""
    workload = Concurrency.of([(1, 999), (8, 1)])
    found = plan(PlanRequest(0, 8, "optimal", max_graphs=1, concurrency=workload))
    assert found.batch_sizes == (1,)
    assert found.eager_batch_sizes == 7


def test_without_a_budget_each_batch_size_of_the_workload_gets_a_graph() -> None:
    workload = Concurrency.of([(2, 1), (5, 3)])
    assert plan(PlanRequest(3, 8, "optimal", concurrency=workload)).batch_sizes == (2, 5)
    assert plan(PlanRequest(3, 8, "optimal")).batch_sizes == tuple(range(1, 9))


def test_a_bucket_that_gains_nothing_is_left_out() -> None:
    """Below the smallest measured bucket a graph is no faster."""
    flat = Costs("ms", Curve(((4, 5.0), (8, 6.0))), Curve(((1, 20.0),)))
    assert plan(PlanRequest(3, 8, "optimal", costs=flat)).batch_sizes == (4, 5, 6, 7, 8)


@pytest.mark.parametrize(
    ("budget", "flag"),
    [
        ({"max_graphs": 0}, "--max-graphs 0"),
        ({"max_memory_bytes": 0}, "--max-memory 0"),
        ({"max_capture_s": 0.0}, r"--max-capture-seconds 0\.0"),
        ({"max_capture_s": inf}, "--max-capture-seconds inf"),
    ],
)
def test_a_budget_of_nothing_or_of_everything_is_refused(budget: dict[str, int], flag: str) -> None:
    with pytest.raises(PlanError, match=f"{flag}: must be"):
        PlanRequest(3, 8, "optimal", **budget)


def test_no_graph_where_eager_is_cheaper() -> None:
    dear = Costs("ms", graph=Curve(((1, 9.0),)), eager=Curve(((1, 1.0),)))
    found = plan(PlanRequest(3, 8, "optimal", costs=dear))
    assert found.batch_sizes == ()
    assert found.eager_batch_sizes == 8
    assert found.mean_padding == 0


def test_budgets_with_measured_costs() -> None:
    costs = Costs(
        "ms",
        Curve(((1, 5.0), (16, 9.0))),
        Curve(((1, 20.0),)),
        Curve(((1, 10e6),)),
        Curve(((1, 0.5),)),
    )
    by_memory = plan(PlanRequest(3, 16, "optimal", costs=costs, max_memory_bytes=39_000_000))
    by_time = plan(PlanRequest(3, 16, "optimal", costs=costs, max_capture_s=1.0))
    by_count = {n: plan(PlanRequest(3, 16, "optimal", costs=costs, max_graphs=n)) for n in (2, 3)}
    assert by_memory.batch_sizes == by_count[3].batch_sizes
    assert by_time.batch_sizes == by_count[2].batch_sizes


@pytest.mark.parametrize(
    ("budget", "flag"),
    [({"max_memory_bytes": 1}, "--max-memory"), ({"max_capture_s": 1.0}, "--max-capture-seconds")],
)
def test_such_a_budget_needs_measured_costs(budget: dict[str, int], flag: str) -> None:
    with pytest.raises(PlanError, match=f"{flag} needs --costs"):
        plan(PlanRequest(3, 8, "optimal", **budget))


workloads = st.one_of(
    st.none(),
    st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 10)), min_size=1, max_size=40).map(
        Concurrency.of
    ),
)


@pytest.mark.parametrize("policy", ENGINES)
@settings(max_examples=25)
@given(k=st.integers(0, 8), most=st.integers(1, 130), workload=workloads, data=st.data())
def test_never_worse_than_a_listed_policy_with_as_many_graphs(
    policy: str, k: int, most: int, workload: Concurrency | None, data: st.DataObject
) -> None:
    most += most % 2  # fastdeploy-2.4 refuses an odd token count.
    points = data.draw(st.lists(st.floats(0.1, 9), min_size=1, max_size=6))
    measured = Costs("ms", Curve(tuple(enumerate(points, start=1))), Curve(((1, max(points) * 2),)))
    for costs in (None, measured):
        request = PlanRequest(k, most, policy, concurrency=workload, costs=costs)
        listed = plan(request)
        best = plan(
            PlanRequest(
                k,
                most,
                "optimal",
                concurrency=workload,
                costs=costs,
                max_graphs=len(listed.buckets),
            )
        )
        weights, used = weights_of(request), costs_of(request)
        limit = expected_cost(listed, weights, used) * (1 + 1e-9)
        assert expected_cost(best, weights, used) <= limit


def test_1024_requests_and_64_graphs_in_under_a_second() -> None:
    """A tenth of that on one idle core; the best of three, for others may share it."""
    request = PlanRequest(3, 1024, "optimal", max_graphs=64)
    seconds = []
    for _ in range(3):
        start = perf_counter()
        assert len(plan(request).buckets) == 64
        seconds.append(perf_counter() - start)
    assert min(seconds) < 1
