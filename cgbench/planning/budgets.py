"""Find the best buckets under budgets of graphs, memory and capture time together, exactly.

The method is label-setting dynamic programming. A label is a choice of buckets up to b. It holds
its cost and what it takes of each budget. A label is dropped if another one at the same b costs no
more and takes no more of anything. It is also dropped if it cannot beat the best whole choice
known. A bound decides that. Prices p >= 0 on the budgets give it by weak duality:

    cost to finish >= (least cost to finish with p added per unit taken) - p * (what is left)

The bound holds for any prices. They decide only how long the search is, and never what it returns.
In the worst case there are exponentially many labels, so the work is limited. A search over the
limit is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cgbench.errors import PlanError
from cgbench.planning.optimal import Problem, solve

Array = NDArray[np.float64]

_ROUNDS = 100
_PATIENCE = 6
_KEPT_PRICES = 8
_WIDTHS = (16, 128, 1024)
# This many times the width is searched for labels that others make useless.
_SPARE = 8
# Passes over the prices take the square of the batch sizes: ten seconds for so many.
_MAX_REQUESTS = 2_048
# Labels looked at, over all batch sizes: ten seconds for so many.
_MAX_WORK = 20_000_000
# Sums are exact to about this share, so limits and costs are compared up to it.
_ROUNDING = 1e-12


@dataclass
class _Search:
    """A ``_Search`` holds the problem as arrays over 0..S, and the best whole choice found so far.

    ``taken_by[r, b]`` is what bucket b takes of budget r. ``limits[r]`` is how much of it there is.
    """

    cumulative: Array
    graph: Array
    tails: Array
    taken_by: Array
    limits: Array
    best: float
    best_sizes: tuple[int, ...] = ()

    def allows(self, taken: Array) -> NDArray[np.bool_]:
        """Return a mask of the columns of ``taken`` that keep within every limit."""
        fits = taken <= self.limits[:, None] * (1 + _ROUNDING)
        return np.asarray(np.all(fits, axis=0))

    def taken(self, sizes: tuple[int, ...]) -> Array:
        """Return what buckets of these sizes take together of each budget."""
        taken: Array = self.taken_by[:, list(sizes)].sum(axis=1)
        return taken

    def offer(self, cost: float, sizes: tuple[int, ...]) -> None:
        """Remember a whole choice that keeps within the limits, if it is the best so far."""
        if cost < self.best:
            self.best, self.best_sizes = cost, sizes


@dataclass(frozen=True)
class _Priced:
    """A ``_Priced`` holds the least costs to finish from each b under one set of prices.

    ``following`` holds the buckets that reach them.
    """

    prices: Array
    to_finish: Array
    following: NDArray[np.int64]

    def bound(self, limits: Array) -> float:
        """Return a cost that no choice within ``limits`` goes below."""
        return float(self.to_finish[0] - self.prices @ limits)

    def sizes(self) -> tuple[int, ...]:
        return tuple(self._walk())

    def _walk(self) -> Iterator[int]:
        b = int(self.following[0])
        while b:
            yield b
            b = int(self.following[b])


@dataclass
class _Labels:
    """A ``_Labels`` holds all labels kept so far, one in each row of its arrays.

    The first label is the empty choice.
    """

    cost: Array
    taken: Array
    end: NDArray[np.int64]
    parent: NDArray[np.int64] = field(default_factory=lambda: np.full(1, -1))

    def add(self, cost: Array, taken: Array, end: int, parent: NDArray[np.int64]) -> None:
        self.cost = np.append(self.cost, cost)
        self.taken = np.append(self.taken, taken, axis=1)
        self.end = np.append(self.end, np.full(len(cost), end))
        self.parent = np.append(self.parent, parent)

    def sizes(self, label: int) -> tuple[int, ...]:
        found = []
        while self.parent[label] >= 0:
            found.append(int(self.end[label]))
            label = int(self.parent[label])
        return tuple(reversed(found))


def solve_within(
    problem: Problem, resources: Sequence[tuple[Sequence[float], float]]
) -> tuple[int, ...]:
    """Return the best buckets that keep within every resource, ascending.

    A resource is a pair. Its first part is what a bucket of each batch size takes, and its second
    is how much there is. Raise ``PlanError`` for more batch sizes than can be planned, or if the
    proof would take too long.
    """
    if problem.size > _MAX_REQUESTS:
        raise PlanError(
            f"--max-memory, --max-capture-seconds: planned for at most {_MAX_REQUESTS} requests. "
            "Lower --max-num-seqs, or give --max-graphs alone"
        )
    resources = [each for each in resources if sum(each[0]) > each[1]]
    most = min((_most_that_fit(*each) for each in resources), default=problem.size)
    # How many buckets fit at all is one more budget, because its price tightens the bounds.
    search = _begin(problem, [*resources, ([1.0] * problem.size, most)])
    unlimited = solve(problem, most)
    if search.allows(search.taken(unlimited)[:, None])[0]:
        return unlimited
    prices = np.zeros(len(search.limits))
    # A narrow search finds a good choice soon, and that keeps the next, wider search short.
    # A search that leaves out nothing proves its best.
    for width in _WIDTHS:
        priced = _good_prices(search, prices)
        prices = priced[0].prices
        if _search_within(search, priced, width):
            return search.best_sizes
    raise PlanError(
        "--max-memory, --max-capture-seconds: too many choices come close to the best to prove "
        "one. Give --max-graphs too, or a lower --max-num-seqs"
    )


def _search_within(search: _Search, priced: list[_Priced], width: int) -> bool:
    """Go through b = 1..S with at most ``width`` labels each. Return True if no more were needed.

    The search ends early, with False, if there would be too much work.
    """
    empty = np.zeros((len(search.limits), 1))
    labels = _Labels(np.zeros(1), empty, np.zeros(1, dtype=np.int64))
    is_whole, work = True, 0
    for b in range(1, len(search.tails)):
        is_whole &= _extend(search, labels, priced, b, width)
        work += len(labels.cost)
        if work > _MAX_WORK:
            return False
    return is_whole


def _most_that_fit(taken: Sequence[float], limit: float) -> int:
    """Return how many buckets fit a budget if they are the ones that take least of it."""
    total = np.cumsum(np.sort(np.array(taken)))
    return int((total <= limit * (1 + _ROUNDING)).sum())


def _begin(problem: Problem, resources: Sequence[tuple[Sequence[float], float]]) -> _Search:
    tails = np.array(problem.eager_tails())
    return _Search(
        cumulative=np.array(problem.cumulative_weights()),
        graph=np.array([0.0, *problem.graph]),
        tails=tails,
        taken_by=np.array([[0.0, *taken] for taken, _ in resources]),
        limits=np.array([float(limit) for _, limit in resources]),
        best=float(tails[0]),
    )


def _extend(search: _Search, labels: _Labels, priced: list[_Priced], b: int, width: int) -> bool:
    """Extend every earlier label by bucket b, and keep the useful results.

    Return False if more than ``width`` were useful. Then those with the lowest bounds are kept.
    """
    rows = search.cumulative[b] - search.cumulative[labels.end]
    cost = labels.cost + search.graph[b] * rows
    taken = labels.taken + search.taken_by[:, b : b + 1]
    whole = cost + _to_finish(search, priced, taken, b)
    useful = np.flatnonzero(search.allows(taken) & (whole < search.best * (1 - _ROUNDING)))
    if not len(useful):
        return True
    nearest = useful[np.argsort(whole[useful])[: _SPARE * width]]
    # The last budget follows from the others. It is there only for its price.
    rivals = nearest[_undominated(cost[nearest], taken[:-1, nearest])]
    kept = rivals[np.argsort(whole[rivals])[:width]]
    first = len(labels.cost)
    labels.add(cost[kept], taken[:, kept], b, kept)
    cheapest = first + int(np.argmin(cost[kept]))
    search.offer(float(labels.cost[cheapest] + search.tails[b]), labels.sizes(cheapest))
    return len(nearest) == len(useful) and len(kept) == len(rivals)


def _to_finish(search: _Search, priced: list[_Priced], taken: Array, b: int) -> Array:
    """Return, for each label that ends at b, a cost that no way to finish goes below."""
    prices = np.array([each.prices for each in priced])
    base = np.array([each.to_finish[b] for each in priced]) - prices @ search.limits
    bounds: Array = (base[:, None] + prices @ taken).max(axis=0)
    return bounds


def _undominated(cost: Array, taken: Array) -> NDArray[np.int64]:
    """Return the columns that no other one matches or beats in cost and in everything taken."""
    order = np.lexsort((*taken, cost))
    if len(taken) == 1:
        # By rising cost, only what takes less than all before it is of use.
        least_before = np.minimum.accumulate(np.append(np.inf, taken[0, order[:-1]]))
        return np.asarray(order[taken[0, order] < least_before])
    kept: list[int] = []
    for label in order:
        if not (taken[:, kept] <= taken[:, label : label + 1]).all(axis=0).any():
            kept.append(int(label))
    return np.array(kept, dtype=np.int64)


def _good_prices(search: _Search, start: Array) -> list[_Priced]:
    """Return prices with high bounds, best first, found by subgradient steps from ``start``.

    After a few steps in a row without gain, the steps go on from the best prices, half as long.
    """
    latest = best = _finish_under(search, start)
    found, factor, without_gain = [latest], 1.0, 0
    while len(found) < _ROUNDS and (step := _step(search, latest)) is not None:
        latest = _finish_under(search, np.maximum(latest.prices + factor * step, 0.0))
        found.append(latest)
        if latest.bound(search.limits) > best.bound(search.limits):
            best, without_gain = latest, 0
        else:
            without_gain += 1
        if without_gain == _PATIENCE:
            latest, factor, without_gain = best, factor / 2, 0
    return sorted(found, key=lambda each: -each.bound(search.limits))[:_KEPT_PRICES]


def _step(search: _Search, priced: _Priced) -> Array | None:
    """Return the step to higher bounds, scaled by the best choice found (Polyak).

    Return None if there is no way up.
    """
    scale = np.where(search.limits > 0, search.limits, 1.0)
    over = (search.taken(priced.sizes()) - search.limits) / scale
    gap = search.best - priced.bound(search.limits)
    if not over.any() or gap <= _ROUNDING * abs(search.best):
        return None
    return np.asarray(gap / (over @ over) * over / scale)


def _finish_under(search: _Search, prices: Array) -> _Priced:
    """Return the least costs to finish under these prices, computed backward over b.

    Each b goes on eager, or with the next bucket and its price.
    """
    last = len(search.tails) - 1
    price_of = prices @ search.taken_by
    to_finish, following = search.tails.copy(), np.zeros(last + 1, dtype=np.int64)
    for b in range(last - 1, -1, -1):
        rows = search.cumulative[b + 1 :] - search.cumulative[b]
        costs = search.graph[b + 1 :] * rows + price_of[b + 1 :] + to_finish[b + 1 :]
        next_bucket = int(costs.argmin())
        if costs[next_bucket] < to_finish[b]:
            to_finish[b], following[b] = costs[next_bucket], b + 1 + next_bucket
    priced = _Priced(prices, to_finish, following)
    taken = search.taken(priced.sizes())
    if search.allows(taken[:, None])[0]:
        search.offer(float(to_finish[0] - prices @ taken), priced.sizes())
    return priced
