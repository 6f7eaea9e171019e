"""Estimate times of batch sizes that were not measured, linear between the measured ones.

Neighbours are of the same k, and both in graphs or both eager. Between a graph and an eager step
lies a cliff whose place was not measured. The measured sizes show how wrong a line is, because each
is predicted from its neighbours.

An error does not fade near a measured size. One size can take far longer than both of its
neighbours (``results/h200/linear-rows.md``), so a line through it is as wrong next to it.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot, inf, log, sqrt

from cgbench.advice.cell_times import At, CellTime, MeasuredTimes
from cgbench.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Mix:
    """A ``Mix`` is a time as a weighted sum of measured cells. One cell of weight 1 is measured."""

    parts: tuple[tuple[CellTime, float], ...]

    @property
    def seconds(self) -> float:
        """Return the seconds of the weighted sum."""
        return sum(weight * cell.seconds for cell, weight in self.parts)

    @property
    def is_measured(self) -> bool:
        """Check that the time is one measured cell, and not interpolated."""
        return len(self.parts) == 1

    @property
    def ends(self) -> tuple[int, int]:
        """Return the first and the last batch size that the time is made of."""
        return self.parts[0][0].at.batch_size, self.parts[-1][0].at.batch_size


@dataclass(frozen=True, slots=True)
class Doubt:
    """A ``Doubt`` states what interpolated times may be wrong by, in logarithms.

    ``error`` is that of one time. ``ratio_error`` is that of the ratio of two k at one batch size,
    which share a part of their errors. Both are root mean squares over the batch sizes that were
    left out, and infinite if there were none. ``num_sizes`` counts those batch sizes. They are the
    evidence, because the k of one batch size are wrong together.
    """

    error: float
    ratio_error: float
    num_sizes: int

    @property
    def of_time(self) -> Estimate:
        """Return 0 with the error of the logarithm of one time."""
        return Estimate(0.0, self.error, max(self.num_sizes, 1))

    @property
    def of_ratio(self) -> Estimate:
        """Return 0 with the error of the logarithm of the ratio of two k at one batch size."""
        return Estimate(0.0, self.ratio_error, max(self.num_sizes, 1))

    def apart(self, share: float, other: float) -> float:
        """Return what two sums may be wrong by, one over the other.

        ``share`` of the one and ``other`` of the other are times of two k at one batch size. What
        both carry is wrong by the ratio's error. What one of them carries more is wrong by a
        time's.
        """
        more, both = abs(share - other), sqrt(share * other)
        return hypot(more and more * self.error, both and both * self.ratio_error)


def time_at(times: MeasuredTimes, at: At) -> Mix | None:
    """Return the time at a batch size. Return None outside those measured at this k and context,
    and between a graph and an eager step.
    """
    sizes = _sizes(times, at)
    if not sizes or not sizes[0] <= at.batch_size <= sizes[-1]:
        return None
    index = bisect_left(sizes, at.batch_size)
    if sizes[index] == at.batch_size:
        return Mix(((times.cells[at], 1.0),))
    low, high = sizes[index - 1], sizes[index]
    return _between(times, at, low, high) if _are_alike(times, at, low, high) else None


def left_out_errors(times: MeasuredTimes, context_len: int) -> dict[At, float]:
    """Return the relative error (log) of every inner cell, predicted from its neighbours.

    There are two, one on either side.
    """
    return dict(_errors(times, context_len))


def interpolation_doubt(times: MeasuredTimes, context_len: int) -> Doubt:
    """Return what times between the measured batch sizes of one context may be wrong by."""
    by_size: defaultdict[int, list[float]] = defaultdict(list)
    for at, error in left_out_errors(times, context_len).items():
        by_size[at.batch_size].append(error)
    if not by_size:
        return Doubt(inf, inf, 0)
    error = _root_mean_square(error for errors in by_size.values() for error in errors)
    pairs = [pair for errors in by_size.values() for pair in combinations(errors, 2)]
    # Without a pair nothing is known to be shared, and the two may err in opposite directions.
    ratio_error = _root_mean_square(x - y for x, y in pairs) if pairs else 2 * error
    return Doubt(error, ratio_error, len(by_size))


def _root_mean_square(values: Iterable[float]) -> float:
    squares = [each**2 for each in values]
    return sqrt(sum(squares) / len(squares))


def _errors(times: MeasuredTimes, context_len: int) -> Iterator[tuple[At, float]]:
    for k in times.lengths:
        sizes = _sizes(times, At(context_len, 0, k))
        for low, size, high in zip(sizes, sizes[1:], sizes[2:], strict=False):
            at = At(context_len, size, k)
            if _are_alike(times, at, low, size, high):
                yield at, log(_between(times, at, low, high).seconds / times.cells[at].seconds)


def _are_alike(times: MeasuredTimes, at: At, *sizes: int) -> bool:
    """Return whether cells of these batch sizes ran in one mode."""
    return len({times.cells[at._replace(batch_size=size)].mode for size in sizes}) == 1


def _sizes(times: MeasuredTimes, at: At) -> Sequence[int]:
    return [
        n
        for n in times.batch_sizes(at.context_len)
        if At(at.context_len, n, at.spec_tokens) in times.cells
    ]


def _between(times: MeasuredTimes, at: At, low: int, high: int) -> Mix:
    share = (at.batch_size - low) / (high - low)
    ends = (times.cells[at._replace(batch_size=n)] for n in (low, high))
    return Mix(tuple(zip(ends, (1 - share, share), strict=True)))
