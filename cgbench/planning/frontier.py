"""Find the least cost for each number of graphs, without a layer for every number.

A price on each graph turns "at most n graphs" into one pass. ``cheapest(problem, price)`` is the
best choice if every bucket costs that much more. Its priced cost bounds what any n graphs can reach
(Lagrange's weak duality):

    cost of any n graphs >= priced cost of the best choice - price * n

The choices of all prices are the corners of a convex hull. A choice of n graphs that lies on the
hull is proved to be the best of its number, whatever the costs are. Between two corners a choice is
made of both: the small buckets of one, the large buckets of the other. If graphs cost more the
larger they are, that choice lies on the hull too, because the costs are Monge. The source is
Aggarwal, Schieber and Tokuyama 1994, "Finding a minimum-weight k-link path in graphs with the
concave Monge property". If no choice is on the hull, the layers of ``optimal`` decide.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

from cgbench.errors import PlanError
from cgbench.planning.optimal import Problem, by_layers, cheapest

# Two costs closer than this share are the same but for rounding.
_ROUNDING = 1e-9

# A corner that gains less than this share is the edge itself.
_STEP_ROUNDING = 1e-12

# About ten seconds of layers, counted in batch sizes times graphs.
_MAX_LAYER_STEPS = 12_000_000


@dataclass(frozen=True)
class Choice:
    """A ``Choice`` is a set of buckets, ascending, with its cost.

    Everything above them runs eager.
    """

    sizes: tuple[int, ...]
    cost: float

    @property
    def num_graphs(self) -> int:
        """Return how many graphs the choice captures."""
        return len(self.sizes)


class Frontier:
    """A ``Frontier`` gives the best choice of each number of graphs, found when it is asked for."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._cumulative = problem.cumulative_weights()
        self._tails = problem.eager_tails()
        self._corners = [self._choice(()), self._choice(cheapest(problem))]
        self._edges: set[int] = set()
        self._layered: dict[int, Choice] = {}

    def best(self, max_graphs: int) -> Choice:
        """Return the best choice of at most ``max_graphs``.

        Raise ``PlanError`` if proving one choice the best would take too long.
        """
        if max_graphs >= self._corners[-1].num_graphs:
            return self._corners[-1]
        left, right = self._edge(lambda corner: corner.num_graphs <= max_graphs)
        if left.num_graphs == max_graphs:
            return left
        between = self._between(left, right, max_graphs)
        on_hull = left.cost - _price(left, right) * (max_graphs - left.num_graphs)
        is_proved = between.cost <= on_hull + _ROUNDING * abs(on_hull)
        return between if is_proved else self._by_layers(max_graphs)

    def fewest(self, cost: float) -> int | None:
        """Return the fewest graphs whose best choice costs at most ``cost``, or None.

        None means that no number of graphs is cheap enough. Raise ``PlanError`` as ``best`` does.
        """
        if self._corners[0].cost <= cost:
            return 0
        if self._corners[-1].cost > cost:
            return None
        left, right = self._edge(lambda corner: corner.cost > cost)
        # Below this number the hull itself is above the cost.
        first = left.num_graphs + ceil((left.cost - cost) / _price(left, right) - _ROUNDING)
        numbers = range(max(first, left.num_graphs + 1), right.num_graphs)
        return next((n for n in numbers if self.best(n).cost <= cost), right.num_graphs)

    def _edge(self, is_left: Callable[[Choice], bool]) -> tuple[Choice, Choice]:
        """Return the neighbouring corners of which only the first one ``is_left``."""
        index = bisect_left(self._corners, True, key=lambda corner: not is_left(corner))
        left, right = self._corners[index - 1], self._corners[index]
        while left.num_graphs not in self._edges:
            corner = self._corner_between(left, right)
            if corner is None:
                self._edges.add(left.num_graphs)
            elif is_left(corner):
                left = corner
            else:
                right = corner
        return left, right

    def _corner_between(self, left: Choice, right: Choice) -> Choice | None:
        """Return a corner of the hull below the line through two others.

        Return None if the line is an edge of the hull.
        """
        price = _price(left, right)
        found = self._choice(cheapest(self._problem, price))
        if not left.num_graphs < found.num_graphs < right.num_graphs:
            return None
        line = left.cost - price * (found.num_graphs - left.num_graphs)
        if found.cost >= line - _STEP_ROUNDING * abs(line):
            return None
        insort(self._corners, found, key=lambda corner: corner.num_graphs)
        return found

    def _between(self, left: Choice, right: Choice, num_graphs: int) -> Choice:
        """Return the best choice of ``num_graphs`` that joins the two corners.

        It begins with buckets of ``right`` and goes on with buckets of ``left``.
        """
        more = num_graphs - left.num_graphs
        before, after = self._costs_before(right.sizes), self._costs_before(left.sizes)
        best: tuple[float, int] | None = None
        for kept in range(left.num_graphs + 1):
            last = right.sizes[kept + more - 1]
            if kept < left.num_graphs and last >= left.sizes[kept]:
                continue
            cost = before[kept + more] + self._cost_of_rest(left, after, kept, last)
            best = min(best or (cost, kept), (cost, kept))
        assert best is not None
        kept = best[1]
        return self._choice((*right.sizes[: kept + more], *left.sizes[kept:]))

    def _cost_of_rest(self, choice: Choice, before: list[float], kept: int, last: int) -> float:
        """Return the cost of all above ``last`` in the choice's buckets from number ``kept`` on."""
        if kept == choice.num_graphs:
            return self._tails[last]
        rest = choice.cost - before[kept + 1]
        return self._cost(last, choice.sizes[kept]) + rest

    def _costs_before(self, sizes: tuple[int, ...]) -> list[float]:
        """Return what the first 0, 1, .. of the buckets cost together."""
        pairs = zip((0, *sizes), sizes, strict=False)
        return [0.0, *accumulate(self._cost(below, size) for below, size in pairs)]

    def _cost(self, below: int, size: int) -> float:
        weight = self._cumulative[size] - self._cumulative[below]
        return self._problem.graph[size - 1] * weight

    def _choice(self, sizes: tuple[int, ...]) -> Choice:
        return Choice(sizes, self._costs_before(sizes)[-1] + self._tails[sizes[-1] if sizes else 0])

    def _by_layers(self, max_graphs: int) -> Choice:
        if max_graphs * self._problem.size > _MAX_LAYER_STEPS:
            raise PlanError(
                "--policy optimal: too many choices come close to the best to prove one. Lower "
                "--max-graphs or --max-num-seqs"
            )
        if max_graphs not in self._layered:
            self._layered[max_graphs] = self._choice(by_layers(self._problem, max_graphs))
        return self._layered[max_graphs]


def _price(left: Choice, right: Choice) -> float:
    """Return the price of a graph at which two corners cost the same."""
    return (left.cost - right.cost) / (right.num_graphs - left.num_graphs)
