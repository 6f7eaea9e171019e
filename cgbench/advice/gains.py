"""What a schedule saves over one fixed k, on a workload, with its interval.

The time compared is that of one token for every running request, averaged over how often each
number of requests runs. Errors add up in closed form: a cell's share of the time tells how far its
error carries, and nothing is drawn.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt

from cgbench.advice.bounded import Bounded, bounded
from cgbench.advice.cell_times import At, MeasuredTimes
from cgbench.advice.interpolation import Mix, interpolation_error, time_at
from cgbench.advice.lengths import Lengths
from cgbench.advice.tiers import KTier
from cgbench.planning import Concurrency
from cgbench.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Gain:
    """A schedule against the fixed ``k``. ``speedup`` is tokens a second over those of ``k``."""

    k: int
    speedup: Bounded


@dataclass(frozen=True)
class Work:
    """How often each batch size runs: ``weights`` sum to 1, and every size can be timed."""

    weights: Mapping[int, float]
    words: str


@dataclass(frozen=True)
class _Total:
    """A mean time and what it is made of, in shares of it."""

    seconds: float
    by_cell: Mapping[At, float]
    by_k: Mapping[int, float]
    by_size: Mapping[int, tuple[int, float, bool]]
    """Of each batch size its k, its share, and whether it was measured."""


KAt = Callable[[int], int]


def work_of(times: MeasuredTimes, context_len: int, concurrency: Concurrency | None) -> Work:
    """The workload over the batch sizes of one context; without one each measured size alike."""
    sizes = times.batch_sizes(context_len)
    if concurrency is None:
        alike = dict.fromkeys(sizes, 1 / len(sizes))
        return Work(alike, "every measured batch size alike")
    weights = concurrency.over(sizes[-1])
    is_above = concurrency.weights[-1][0] > sizes[-1]
    above = f", more than {sizes[-1]} counted as {sizes[-1]}" if is_above else ""
    return Work({n: w for n, w in enumerate(weights, start=1) if w}, f"{concurrency.name}{above}")


def fixed_lengths(
    times: MeasuredTimes, lengths: Lengths, context_len: int, work: Work
) -> list[int]:
    """Every k that has a length and a time at each batch size of the workload."""
    return [
        k
        for k in times.lengths
        if lengths.log_of(k) is not None
        and all(time_at(times, At(context_len, n, k)) for n in work.weights)
    ]


def best_fixed(times: MeasuredTimes, lengths: Lengths, context_len: int, work: Work) -> int | None:
    """The fixed k that takes least time; None where none can be timed everywhere."""
    fixed = fixed_lengths(times, lengths, context_len, work)

    def seconds(k: int) -> float:
        return _total(times, lengths, context_len, work, lambda _: k).seconds

    return min(fixed, key=seconds, default=None)


def gain_over(
    k: int,
    tiers: Sequence[KTier],
    times: MeasuredTimes,
    lengths: Lengths,
    context_len: int,
    work: Work,
    confidence: float,
    num_gains: int = 1,
) -> Gain:
    """The schedule's tokens a second over those of the fixed ``k``; ``confidence`` is that of
    ``num_gains`` together."""
    ours = _total(times, lengths, context_len, work, lambda n: _k_at(tiers, n))
    theirs = _total(times, lengths, context_len, work, lambda _: k)
    blind = interpolation_error(times, context_len)
    estimate = _log_faster(ours, theirs, times, lengths, blind)
    return Gain(k, bounded(estimate, confidence, num_gains))


def _k_at(tiers: Sequence[KTier], batch_size: int) -> int:
    return next((tier.k for tier in tiers if batch_size <= tier.last), tiers[-1].k)


def _total(
    times: MeasuredTimes, lengths: Lengths, context_len: int, work: Work, k_at: KAt
) -> _Total:
    seconds: dict[tuple[int, int], tuple[Mix, float]] = {}
    for n, weight in work.weights.items():
        k = k_at(n)
        mix, log_length = time_at(times, At(context_len, n, k)), lengths.log_of(k)
        assert mix and log_length
        seconds[n, k] = mix, weight / exp(log_length.value)
    total = sum(mix.seconds * factor for mix, factor in seconds.values())
    by_cell: defaultdict[At, float] = defaultdict(float)
    by_k: defaultdict[int, float] = defaultdict(float)
    by_size = {}
    for (n, k), (mix, factor) in seconds.items():
        share = mix.seconds * factor / total
        by_k[k] += share
        by_size[n] = k, share, mix.is_measured
        for cell, part in mix.parts:
            by_cell[cell.at] += part * cell.seconds * factor / total
    return _Total(total, by_cell, by_k, by_size)


def _log_faster(
    ours: _Total, theirs: _Total, times: MeasuredTimes, lengths: Lengths, blind: float | None
) -> Estimate:
    """Of theirs over ours. ``blind`` is interpolation's error, taken to be one for all sizes."""
    value = log(theirs.seconds / ours.seconds)
    errors = [
        (times.cells[at].log_estimate, theirs.by_cell.get(at, 0.0) - ours.by_cell.get(at, 0.0))
        for at in {*ours.by_cell, *theirs.by_cell}
    ]
    for k in {*ours.by_k, *theirs.by_k}:
        log_length = lengths.log_of(k)
        assert log_length
        errors.append((log_length, theirs.by_k.get(k, 0.0) - ours.by_k.get(k, 0.0)))
    told = [(each, abs(share) * each.error) for each, share in errors if share and each.error]
    unmeasured = sum(
        share + theirs.by_size[n][1]
        for n, (k, share, is_measured) in ours.by_size.items()
        if not is_measured and theirs.by_size[n][0] != k
    )
    blindness = unmeasured * (inf if blind is None else blind) if unmeasured else 0.0
    variance = sum(error**2 for _, error in told) + blindness**2
    if not 0 < variance < inf:
        return Estimate(value, variance, 1)
    freedom = variance**2 / sum(error**4 / each.freedom for each, error in told) if told else inf
    return Estimate(value, sqrt(variance), freedom)
