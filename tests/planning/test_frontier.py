"""The frontier against all layers: every number of graphs, and every cost that one reaches."""

from random import Random

import pytest

from cgbench.errors import PlanError
from cgbench.planning import Concurrency, PlanRequest, frontier
from cgbench.planning.frontier import Frontier
from cgbench.planning.optimal import Problem, least_costs, problem_of, solve


def any_problem(random: Random, most: int) -> Problem:
    """Costs that neither grow nor bend one way, and weights that may be 0."""
    weights = [random.choice([0, 1, random.random()]) for _ in range(most)]
    graph = [random.random() for _ in range(most)]
    return Problem(weights, graph, [random.random() * 6 for _ in range(most)])


def growing_problem(random: Random, most: int) -> Problem:
    graph = sorted(random.random() for _ in range(most))
    return Problem([random.random() for _ in range(most)], graph, [5 * each for each in graph])


def measured_problem(random: Random, most: int) -> Problem:
    """A time that grows, with noise on it, and eager far above."""
    graph = [5 + 0.3 * size + random.random() for size in range(most)]
    return Problem([0.97**size for size in range(most)], graph, [30.0 + i for i in range(most)])


@pytest.mark.parametrize("make", [any_problem, growing_problem, measured_problem])
def test_it_equals_the_layers(make) -> None:
    random = Random(0)
    for _ in range(200):
        problem = make(random, random.randint(1, 25))
        least = least_costs(problem, problem.size)
        found = Frontier(problem)
        for num_graphs, cost in enumerate(least):
            choice = found.best(num_graphs)
            assert choice.num_graphs <= num_graphs
            assert choice.cost == pytest.approx(cost, rel=1e-9, abs=1e-12)
            for limit in (cost * (1 + 1e-8), (cost + least[num_graphs - 1]) / 2 * (1 + 1e-8)):
                fewest = next((n for n, each in enumerate(least) if each <= limit), None)
                assert found.fewest(limit) == fewest


@pytest.mark.parametrize("workload", ["uniform:1-1000", "geometric:60"])
def test_no_layer_is_needed_where_larger_graphs_cost_more(
    workload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(
        PlanRequest(3, 1000, "optimal", concurrency=Concurrency.parse(workload), max_graphs=1)
    )
    least = least_costs(problem, 120)
    monkeypatch.setattr(frontier, "by_layers", None)
    found = Frontier(problem)
    for num_graphs in range(0, 121, 5):
        assert found.best(num_graphs).cost == pytest.approx(least[num_graphs], rel=1e-9)


def test_many_requests_are_solved_in_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 graphs for 8,192 requests: layers would be four million steps."""
    passes = []
    cheapest = frontier.cheapest
    monkeypatch.setattr(frontier, "by_layers", None)
    monkeypatch.setattr(
        frontier, "cheapest", lambda *given: passes.append(given) or cheapest(*given)
    )
    problem = problem_of(PlanRequest(3, 8192, "optimal"))
    assert len(solve(problem, 512)) == 512
    assert len(passes) < 30


def test_what_no_corner_proves_is_left_to_the_layers_or_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some numbers of graphs are no corner of the hull, and lie on none of its edges."""
    monkeypatch.setattr(frontier, "_MAX_LAYER_STEPS", 0)
    random = Random(4)
    refused = 0
    for _ in range(300):
        gapped = any_problem(random, 12)
        for num_graphs in range(1, 12):
            try:
                Frontier(gapped).best(num_graphs)
            except PlanError as error:
                assert "--max-graphs" in str(error)
                refused += 1
    assert refused
