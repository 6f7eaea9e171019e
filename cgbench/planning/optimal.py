"""Find the buckets of least expected iteration time, exactly.

Batch sizes 1..S have weights w. A batch of n runs in the smallest chosen bucket b >= n at cost
g(b). Above the largest it runs eager at e(n). Let W(b) = w(1) + .. + w(b). Let f(j, b) be the least
cost of serving 1..b in j buckets, the last of which is b:

    f(j, b) = min over a < b of f(j - 1, a) + g(b) * (W(b) - W(a))

The answer is the least f(j, b) + (eager cost of b + 1..S), over b and j. For a fixed j this is, in
x = g(b), the lower envelope of the lines f(j - 1, a) - W(a) * x. Their slopes fall as a grows,
whatever the costs are. So lines are only added at one end of the envelope, and each minimum is a
binary search. A layer takes S log S steps, and costs need not grow with the batch size.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from operator import add

from cgbench.errors import PlanError
from cgbench.planning.costs import Curve
from cgbench.planning.expected import costs_of, weights_of
from cgbench.planning.plan_request import PlanRequest

# A smaller gain than this share is rounding, so fewer graphs are preferred.
_ROUNDING = 1e-12

# Batch sizes times graphs: half a second of layers.
_FEW_STEPS = 300_000


@dataclass(frozen=True)
class Problem:
    """A ``Problem`` holds the weights and costs of batch sizes 1..S.

    Index n - 1 is batch size n.
    """

    weights: Sequence[float]
    graph: Sequence[float]
    eager: Sequence[float]

    @property
    def size(self) -> int:
        """Return S, the largest batch size."""
        return len(self.weights)

    def cumulative_weights(self) -> list[float]:
        """Return W(0), W(1), .., W(S)."""
        return [0.0, *accumulate(self.weights)]

    def eager_tails(self) -> list[float]:
        """Return the cost of running b + 1..S eager, for b = 0..S."""
        costs = [w * e for w, e in zip(self.weights, self.eager, strict=True)]
        return [0.0, *accumulate(reversed(costs))][::-1]


def problem_of(request: PlanRequest) -> Problem:
    """Return the request's workload and costs as a problem to solve, without its budgets."""
    costs, most = costs_of(request), request.max_batch_size
    return Problem(weights_of(request), _sampled(costs.graph, most), _sampled(costs.eager, most))


def best_batch_sizes(request: PlanRequest) -> tuple[int, ...]:
    """Return the batch sizes that the policy ``optimal`` captures, ascending.

    Raise ``PlanError`` if a budget of memory or time has no measured cost to count by. Raise it too
    if the proof of the best choice would take too long.
    """
    most = request.max_batch_size
    max_graphs = most if request.max_graphs is None else min(request.max_graphs, most)
    problem, resources = problem_of(request), _resources(request)
    if not resources:
        return solve(problem, max_graphs)
    # It imports numpy, and no other plan needs that.
    from cgbench.planning.budgets import solve_within

    return solve_within(problem, [([1.0] * most, float(max_graphs)), *resources])


def solve(problem: Problem, max_graphs: int) -> tuple[int, ...]:
    """Return the best buckets, at most ``max_graphs`` of them, without any that gains nothing.

    Raise ``PlanError`` if proving one choice the best would take too long.
    """
    if max_graphs >= problem.size:
        return cheapest(problem)
    if max_graphs * problem.size <= _FEW_STEPS:
        return by_layers(problem, max_graphs)
    # An import at the top would be circular.
    from cgbench.planning.frontier import Frontier

    return Frontier(problem).best(max_graphs).sizes


def by_layers(problem: Problem, max_graphs: int) -> tuple[int, ...]:
    """Return what ``solve`` does, computed by all layers up to ``max_graphs``."""
    tails, previous = problem.eager_tails(), list[list[int]]()
    best, best_end = tails[0], (0, 0)
    for count, layer, chosen in _layers(problem, max_graphs):
        previous.append(chosen)
        end, cost = _cheapest_end(layer, tails)
        if cost < best - _ROUNDING * abs(best):
            best, best_end = cost, (count, end)
    return _walk_back(previous, *best_end)


def cheapest(problem: Problem, price: float = 0.0) -> tuple[int, ...]:
    """Return the best buckets, any number of them, if each costs ``price`` more.

    One layer that goes back to itself is enough.
    """
    cumulative, envelope = problem.cumulative_weights(), Envelope()
    costs, chosen = [0.0], [0]
    for b, x in enumerate(problem.graph, start=1):
        envelope.add(costs[b - 1], cumulative[b - 1], b - 1)
        value, a = envelope.least_at(x)
        costs.append(value + x * cumulative[b] + price)
        chosen.append(a)
    b, _ = _cheapest_end(costs, problem.eager_tails())
    sizes = list[int]()
    while b:
        # A bucket gains nothing if it has no weight of its own, or is no cheaper than the next.
        is_cheaper = not sizes or problem.graph[b - 1] < problem.graph[sizes[-1] - 1]
        if is_cheaper and cumulative[b] > cumulative[chosen[b]]:
            sizes.append(b)
        b = chosen[b]
    return tuple(reversed(sizes))


def least_costs(problem: Problem, max_graphs: int) -> list[float]:
    """Return the least cost with at most 0, 1, .., ``max_graphs`` buckets."""
    tails = problem.eager_tails()
    found = [tails[0]]
    for _, layer, _ in _layers(problem, max_graphs):
        found.append(min(found[-1], _cheapest_end(layer, tails)[1]))
    return found


def _layers(problem: Problem, max_graphs: int) -> Iterator[tuple[int, list[float], list[int]]]:
    """Yield j, f(j, .) and the a that each b goes back to, for j = 1..max_graphs."""
    cumulative = problem.cumulative_weights()
    layer = [0.0] + [inf] * problem.size
    for count in range(1, max_graphs + 1):
        layer, chosen = _next_layer(problem.graph, cumulative, layer)
        yield count, layer, chosen


def _cheapest_end(layer: list[float], tails: list[float]) -> tuple[int, float]:
    """Return the last bucket of the best choice in this layer, and its cost with all above it
    eager.
    """
    ends = list(map(add, layer, tails))
    cost = min(ends)
    return ends.index(cost), cost


def _next_layer(
    graph: Sequence[float], cumulative: list[float], layer: list[float]
) -> tuple[list[float], list[int]]:
    """Return f(j, .) from f(j - 1, .), and for each b the a that it goes back to."""
    envelope = Envelope()
    costs, chosen = [inf], [0]
    for b, x in enumerate(graph, start=1):
        if layer[b - 1] < inf:
            envelope.add(layer[b - 1], cumulative[b - 1], b - 1)
        value, a = envelope.least_at(x)
        costs.append(value + x * cumulative[b])
        chosen.append(a)
    return costs, chosen


def _walk_back(previous: list[list[int]], count: int, end: int) -> tuple[int, ...]:
    sizes = []
    for layer in reversed(range(count)):
        sizes.append(end)
        end = previous[layer][end]
    return tuple(reversed(sizes))


class Envelope:
    """An ``Envelope`` finds the lowest of lines ``height - fall * x``.

    Lines are added with ``fall`` never less than before.
    """

    def __init__(self) -> None:
        self._heights: list[float] = []
        self._falls: list[float] = []
        self._labels: list[int] = []
        # The x from which each line is the lowest one.
        self._starts: list[float] = []

    def add(self, height: float, fall: float, label: int) -> None:
        """Add the line ``height - fall * x`` under a label, and drop the lines that
        become useless.
        """
        start = -inf
        while self._starts:
            steeper = fall - self._falls[-1]
            rise = height - self._heights[-1]
            if not steeper and rise >= 0:
                return
            start = rise / steeper if steeper else -inf
            if start > self._starts[-1]:
                break
            self._drop_last()
            start = -inf
        self._heights.append(height)
        self._falls.append(fall)
        self._labels.append(label)
        self._starts.append(start)

    def _drop_last(self) -> None:
        for column in (self._heights, self._falls, self._labels, self._starts):
            column.pop()

    def least_at(self, x: float) -> tuple[float, int]:
        """Return the lowest value at ``x`` and the label of its line.

        Without a line the value is infinite and the label 0.
        """
        index = bisect_right(self._starts, x) - 1
        if index < 0:
            return inf, 0
        return self._heights[index] - self._falls[index] * x, self._labels[index]


def _sampled(curve: Curve, most: int) -> list[float]:
    return [curve(size) for size in range(1, most + 1)]


def _resources(request: PlanRequest) -> list[tuple[list[float], float]]:
    """Return what one bucket takes of each limited thing, by batch size, and how much of it there
    is.
    """
    costs, found = costs_of(request), []
    for flag, curve, limit in (
        ("--max-memory", costs.memory_bytes, request.max_memory_bytes),
        ("--max-capture-seconds", costs.capture_s, request.max_capture_s),
    ):
        if limit is None:
            continue
        if curve is None:
            raise PlanError(f"{flag} needs --costs RUN_DIR: what a graph takes must be measured")
        found.append((_sampled(curve, request.max_batch_size), float(limit)))
    return found
