"""Compute what a schedule saves over one fixed k, on a workload, with its interval.

The time compared is that of one token for every running request. It is averaged over how often each
number of requests runs. Errors add up in closed form: a cell's share of the time decides how far
its error carries. Nothing is drawn.

Batch sizes in one gap between measured ones are taken to be wrong together, because all of them
lean on the same two. Different gaps are independent. Sizes that were left out of recorded runs bear
that out (``scripts/trials/check_gains.py``).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import exp, hypot, inf, log, sqrt
from typing import TypeVar

from cgbench.advice.bounded import Bounded, bounded
from cgbench.advice.cell_times import At, MeasuredTimes
from cgbench.advice.interpolation import Doubt, Mix, interpolation_doubt, time_at
from cgbench.advice.lengths import Lengths
from cgbench.advice.tiers import KTier
from cgbench.planning import Concurrency
from cgbench.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Gain:
    """A ``Gain`` compares a schedule with the fixed ``k``.

    ``speedup`` is the schedule's tokens a second over those of ``k``.
    """

    k: int
    speedup: Bounded


@dataclass(frozen=True)
class Work:
    """A ``Work`` states how often each batch size runs: ``weights`` sum to 1.

    Every one of these sizes can be timed. ``words`` describe the workload.
    """

    weights: Mapping[int, float]
    words: str


@dataclass(frozen=True)
class Ground:
    """A ``Ground`` holds what k are compared on: the times of one context, lengths, and a
    workload.

    ``buckets`` holds what a batch size runs in at a k, by both, where it is padded.
    """

    times: MeasuredTimes
    lengths: Lengths
    context_len: int
    work: Work
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @cached_property
    def doubt(self) -> Doubt:
        """Return what times between the measured batch sizes may be wrong by."""
        return interpolation_doubt(self.times, self.context_len)

    def log_length(self, spec_tokens: int) -> Estimate:
        """Return the log of the acceptance length of a k that has one."""
        found = self.lengths.log_of(spec_tokens)
        assert found
        return found

    def time(self, batch_size: int, spec_tokens: int) -> Mix | None:
        """Return the time of a batch size at a k, or None outside of what was measured."""
        bucket = self.buckets.get((batch_size, spec_tokens), batch_size)
        return time_at(self.times, At(self.context_len, bucket, spec_tokens))


@dataclass(frozen=True, slots=True)
class _Part:
    """A ``_Part`` holds what one batch size adds to a mean time: its k, its share, and its time."""

    k: int
    share: float
    mix: Mix

    @property
    def interpolated(self) -> float:
        """Return the share if the time is interpolated. A measured time has no such error."""
        return 0.0 if self.mix.is_measured else self.share


@dataclass(frozen=True)
class _Total:
    """A ``_Total`` holds a mean time and what it is made of, in shares of it."""

    seconds: float
    by_cell: Mapping[At, float]
    by_k: Mapping[int, float]
    by_size: Mapping[int, _Part]


KAt = Callable[[int], int]
_Key = TypeVar("_Key")


def work_of(times: MeasuredTimes, context_len: int, concurrency: Concurrency | None) -> Work:
    """Return the workload over the batch sizes of one context.

    Without a workload each measured size counts alike.
    """
    sizes = times.batch_sizes(context_len)
    if concurrency is None:
        alike = dict.fromkeys(sizes, 1 / len(sizes))
        return Work(alike, "every measured batch size alike")
    weights = concurrency.over(sizes[-1])
    words = concurrency.words(sizes[-1])
    return Work({n: w for n, w in enumerate(weights, start=1) if w}, words)


def fixed_lengths(ground: Ground) -> list[int]:
    """Return every k that has a length, and a time at each batch size of the workload."""
    return [
        k
        for k in ground.times.lengths
        if ground.lengths.log_of(k) is not None
        and all(ground.time(n, k) for n in ground.work.weights)
    ]


def best_fixed(ground: Ground) -> int | None:
    """Return the fixed k that takes least time, or None if none has a time at every batch size."""

    def seconds(k: int) -> float:
        return _total(ground, lambda _: k).seconds

    return min(fixed_lengths(ground), key=seconds, default=None)


def is_timed(tiers: Sequence[KTier], ground: Ground) -> bool:
    """Check that every batch size of the workload has a time at its tier's k."""
    return all(ground.time(n, _k_at(tiers, n)) for n in ground.work.weights)


def gain_over(
    k: int, tiers: Sequence[KTier], ground: Ground, confidence: float, num_gains: int = 1
) -> Gain:
    """Return the gain of the schedule over the fixed ``k``.

    ``confidence`` is that of ``num_gains`` together.
    """
    ours = _total(ground, lambda n: _k_at(tiers, n))
    theirs = _total(ground, lambda _: k)
    return Gain(k, bounded(_log_faster(ours, theirs, ground), confidence, num_gains))


def _k_at(tiers: Sequence[KTier], batch_size: int) -> int:
    return next((tier.k for tier in tiers if batch_size <= tier.last), tiers[-1].k)


def _total(ground: Ground, k_at: KAt) -> _Total:
    seconds: dict[tuple[int, int], tuple[Mix, float]] = {}
    for n, weight in ground.work.weights.items():
        k = k_at(n)
        mix = ground.time(n, k)
        assert mix
        seconds[n, k] = mix, weight / exp(ground.log_length(k).value)
    total = sum(mix.seconds * factor for mix, factor in seconds.values())
    by_cell: defaultdict[At, float] = defaultdict(float)
    by_k: defaultdict[int, float] = defaultdict(float)
    by_size = {}
    for (n, k), (mix, factor) in seconds.items():
        share = mix.seconds * factor / total
        by_k[k] += share
        by_size[n] = _Part(k, share, mix)
        for cell, part in mix.parts:
            by_cell[cell.at] += part * cell.seconds * factor / total
    return _Total(total, by_cell, by_k, by_size)


def _log_faster(ours: _Total, theirs: _Total, ground: Ground) -> Estimate:
    """Estimate the logarithm of theirs over ours.

    Every error counts by how much more of one side's time it carries.
    """
    cells = [
        (ground.times.cells[at].log_estimate, _apart(theirs.by_cell, ours.by_cell, at))
        for at in {*ours.by_cell, *theirs.by_cell}
    ]
    lengths = [
        (ground.log_length(k), _apart(theirs.by_k, ours.by_k, k))
        for k in {*ours.by_k, *theirs.by_k}
    ]
    told = [(each.freedom, share * each.error) for each, share in (*cells, *lengths) if share]
    told.append((ground.doubt.of_time.freedom, hypot(*_gap_errors(ours, theirs, ground.doubt))))
    variance = sum(error**2 for _, error in told)
    value = log(theirs.seconds / ours.seconds)
    if not 0 < variance < inf:
        return Estimate(value, variance, 1)
    spread = sum(error**4 / freedom for freedom, error in told)
    return Estimate(value, sqrt(variance), variance**2 / spread if spread else inf)


def _gap_errors(ours: _Total, theirs: _Total, doubt: Doubt) -> list[float]:
    """Return what interpolation may be wrong by, for each gap between measured batch sizes.

    Gaps of two k that overlap count as one.
    """
    errors: list[float] = []
    end = 0
    for n in sorted(ours.by_size):
        parts = ours.by_size[n], theirs.by_size[n]
        unsure = [part.mix.ends for part in parts if not part.mix.is_measured]
        if not unsure:
            continue
        if min(low for low, _ in unsure) >= end:
            errors.append(0.0)
        end = max(end, *(high for _, high in unsure))
        errors[-1] += _size_error(*parts, doubt)
    return errors


def _size_error(ours: _Part, theirs: _Part, doubt: Doubt) -> float:
    if ours.k == theirs.k:
        return doubt.apart(abs(theirs.interpolated - ours.interpolated), 0.0)
    return doubt.apart(theirs.interpolated, ours.interpolated)


def _apart(theirs: Mapping[_Key, float], ours: Mapping[_Key, float], key: _Key) -> float:
    return abs(theirs.get(key, 0.0) - ours.get(key, 0.0))
