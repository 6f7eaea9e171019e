"""Simulate continuous batching over a plan's graphs: which batch sizes a stream of requests causes.

A request is admitted when it has arrived and fewer than max_num_seqs run. It then takes part in
every iteration until its tokens are out. An iteration takes the time of its bucket, or the eager
time. Prefill is not timed.

All iterations between two events are alike. So the simulation goes from event to event, in whole
nanoseconds. The result equals that of going iteration by iteration, exactly.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import ceil

from cgbench.errors import PlanError
from cgbench.planning.concurrency import Concurrency
from cgbench.planning.phase_optimum import cost_by_batch_size
from cgbench.planning.phases import PhasePlan
from cgbench.planning.plan import Bucket
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.request_trace import RequestTrace

_NS_PER_MS = 1_000_000
_TENTHS = 10


@dataclass(frozen=True, slots=True)
class Absorbing:
    """An ``Absorbing`` describes an overload from which the batch size does not come back.

    Batches above ``above`` requests run eager. Even the fastest of them serves tokens more slowly
    than they arrive, so the queue grows. ``arriving``, ``eager`` and ``in_graphs`` are rates in
    tokens a second. The last two are the best rates above and up to ``above``.
    """

    above: int
    arriving: float
    eager: float
    in_graphs: float


@dataclass(frozen=True)
class Admission:
    """An ``Admission`` holds the result of replaying a request trace over a plan.

    Times are in milliseconds, and shares are over iterations. ``iterations`` holds pairs of a batch
    size and how many iterations ran at it. ``padding_ms`` is the time of padded rows: a bucket's
    time minus that of a bucket of just the batch's size. ``total_ms`` is the time of all
    iterations, without idle time. ``num_events`` is the number of stretches of alike iterations,
    which is the work of the replay. ``tpot_ms`` ascends and holds a time per output token for each
    request that decodes. ``tenths`` are the mean batch sizes in each tenth of the time.
    ``absorbing`` is None if the batch size cannot get stuck.
    """

    iterations: tuple[tuple[int, int], ...]
    in_graph_share: float
    padding_ms: float
    total_ms: float
    num_events: int
    tpot_ms: tuple[float, ...]
    tenths: tuple[float, ...]
    absorbing: Absorbing | None

    @property
    def num_iterations(self) -> int:
        """Return how many decode iterations ran, over all batch sizes."""
        return sum(count for _, count in self.iterations)

    @property
    def mean_batch_size(self) -> float:
        """Return the mean number of requests of an iteration, with every iteration counted once."""
        return sum(size * count for size, count in self.iterations) / max(self.num_iterations, 1)

    def tpot_percentile(self, percent: float) -> float:
        """Return the time per output token, in milliseconds, at this percentile of requests.

        The rank is the nearest one above, and requests ascend in time.
        """
        rank = max(ceil(percent / 100 * len(self.tpot_ms)), 1)
        return self.tpot_ms[rank - 1]

    def workload(self, name: str) -> Concurrency:
        """Return how often each batch size ran, as a workload of this name for the planner."""
        return Concurrency.of(((size, float(count)) for size, count in self.iterations), name)


def admit(
    request: PlanRequest, found: PhasePlan, trace: RequestTrace, acceptance_length: float
) -> Admission:
    """Replay ``trace`` over the plan, and return what its requests met.

    Each request gets ``acceptance_length`` tokens an iteration. Raise ``PlanError`` if the costs
    are not in milliseconds or ``acceptance_length`` is not 1 to k + 1. Raise it too if no request
    needs an iteration.
    """
    if request.costs is None or request.costs.unit != "ms":
        raise PlanError("--concurrency: a request trace needs --costs RUN_DIR, for times")
    if not 1 <= acceptance_length <= request.query_len:
        raise PlanError(
            f"--acceptance-length {acceptance_length:g}: must be 1 to {request.query_len} at "
            f"--spec-tokens {request.spec_tokens}"
        )
    cost = cost_by_batch_size(request, found)
    duration = [0, *(_whole_ns(cost(n)) for n in range(1, request.max_batch_size + 1))]
    iterations = [_iterations(tokens, acceptance_length) for tokens in trace.output_tokens]
    replay = _Replay(duration, request.max_batch_size)
    replay.run(trace.arrival_ns, iterations)
    if not replay.counts:
        raise PlanError("--concurrency: every request of the trace ends with its first token")
    return _summed(request, found, trace, acceptance_length, replay, cost)


def _iterations(output_tokens: int, acceptance_length: float) -> int:
    """Return the decode iterations of a request. Prefill gives its first token."""
    return ceil((output_tokens - 1) / acceptance_length)


def _whole_ns(milliseconds: float) -> int:
    return max(round(milliseconds * _NS_PER_MS), 1)


class _Replay:
    """A ``_Replay`` holds the state of the simulation, and what it has counted."""

    def __init__(self, duration_ns: Sequence[int], max_batch_size: int) -> None:
        self._duration, self._most = duration_ns, max_batch_size
        self._now = self._iteration = self._running = 0
        # Each entry holds a request's last iteration, its admission time and its number.
        self._ends: list[tuple[int, int, int]] = []
        self.counts: Counter[int] = Counter()
        self.decode_ns: dict[int, int] = {}
        self.steps: list[tuple[int, int, int]] = []

    def run(self, arrival_ns: Sequence[int], iterations: Sequence[int]) -> None:
        first, total = 0, len(arrival_ns)
        while first < total or self._running:
            if not self._running:
                self._now = max(self._now, arrival_ns[first])
            first = self._admit(first, arrival_ns, iterations)
            if self._running:
                self._go_on(arrival_ns[first] if first < total else None)

    def _admit(self, first: int, arrival_ns: Sequence[int], iterations: Sequence[int]) -> int:
        """Admit the requests that have arrived while there is room.

        Return the next that has to wait.
        """
        while (
            first < len(arrival_ns)
            and self._running < self._most
            and arrival_ns[first] <= self._now
        ):
            if iterations[first]:
                heappush(self._ends, (self._iteration + iterations[first], self._now, first))
                self._running += 1
            first += 1
        return first

    def _go_on(self, next_arrival: int | None) -> None:
        """Run iterations that are alike, up to the next end or the next arrival that has room."""
        running, each = self._running, self._duration[self._running]
        count = self._ends[0][0] - self._iteration
        if next_arrival is not None and running < self._most:
            count = min(count, -(-(next_arrival - self._now) // each))
        self.steps.append((self._now, running, count * each))
        self.counts[running] += count
        self._now += count * each
        self._iteration += count
        while self._ends and self._ends[0][0] == self._iteration:
            _, admitted, number = heappop(self._ends)
            self.decode_ns[number] = self._now - admitted
            self._running -= 1


def _summed(
    request: PlanRequest,
    found: PhasePlan,
    trace: RequestTrace,
    acceptance_length: float,
    replay: _Replay,
    cost: Callable[[int], float],
) -> Admission:
    eager = {*found.eager_batch_sizes}
    total = sum(replay.counts.values())
    exact = cost_by_batch_size(request, _exact(request, found))
    padding = sum(
        count * (cost(size) - exact(size))
        for size, count in replay.counts.items()
        if size not in eager
    )
    tpot = sorted(
        took / (trace.output_tokens[number] - 1) / _NS_PER_MS
        for number, took in replay.decode_ns.items()
    )
    return Admission(
        iterations=tuple(sorted(replay.counts.items())),
        in_graph_share=sum(n for size, n in replay.counts.items() if size not in eager) / total,
        padding_ms=padding,
        total_ms=sum(took for _, _, took in replay.steps) / _NS_PER_MS,
        num_events=len(replay.steps),
        tpot_ms=tuple(tpot),
        tenths=tuple(_tenths(replay.steps)),
        absorbing=_absorbing(request, found, trace, acceptance_length, cost),
    )


def _exact(request: PlanRequest, found: PhasePlan) -> PhasePlan:
    """Return the same phases with a bucket at every batch size."""
    sizes = range(1, request.max_batch_size + 1)
    phases = (
        replace(each, buckets=tuple(Bucket(size, size * each.query_len) for size in sizes))
        for each in found.phases
    )
    return replace(found, phases=tuple(phases))


def _tenths(steps: Sequence[tuple[int, int, int]]) -> Iterator[float]:
    """Yield the mean batch size in each tenth of the time from the first iteration to the last."""
    begin, end = steps[0][0], steps[-1][0] + steps[-1][2]
    edges = [begin + (end - begin) * part / _TENTHS for part in range(_TENTHS + 1)]
    sums, index = [0.0] * _TENTHS, 0
    for at, running, took in steps:
        low, high = float(at), float(at + took)
        while index < _TENTHS - 1 and edges[index + 1] <= low:
            index += 1
        part = index
        while low < high and part < _TENTHS:
            edge = high if part == _TENTHS - 1 else min(high, edges[part + 1])
            sums[part] += running * (edge - low)
            low, part = edge, part + 1
    yield from (each * _TENTHS / (end - begin) for each in sums)


def _absorbing(
    request: PlanRequest,
    found: PhasePlan,
    trace: RequestTrace,
    acceptance_length: float,
    cost: Callable[[int], float],
) -> Absorbing | None:
    """Return the overload in which the batch stays, or None if there is none.

    The batch can rise to it if graphs keep up with the arrivals and eager iterations above do not.
    """
    most, eager = request.max_batch_size, {*found.eager_batch_sizes}
    above = most
    while above in eager:
        above -= 1
    arriving = trace.tokens_per_s
    if above == most or not above or arriving is None:
        return None
    rates = [n * acceptance_length / cost(n) * 1e3 for n in range(1, most + 1)]
    in_graphs, beyond = max(rates[:above]), max(rates[above:])
    if not beyond < arriving <= in_graphs:
        return None
    return Absorbing(above, arriving, beyond, in_graphs)
