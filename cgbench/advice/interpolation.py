"""Estimate times of batch sizes that were not measured, linear between the measured ones.

Neighbours are of the same k, and both in graphs or both eager. Between a graph and an eager step
lies a cliff whose place was not measured. The measured sizes show how wrong a line is, because each
is predicted from its neighbours.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log, sqrt

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


def left_out_errors(times: MeasuredTimes, context_len: int) -> list[float]:
    """Return the relative errors (logs) of every inner batch size, predicted from its neighbours.

    There are two, one on either side.
    """
    return [*_errors(times, context_len)]


def interpolation_error(times: MeasuredTimes, context_len: int) -> float | None:
    """Return the root mean square of ``left_out_errors``, or None if there are none."""
    error = interpolation_doubt(times, context_len).error
    return error if isfinite(error) else None


def interpolation_doubt(times: MeasuredTimes, context_len: int) -> Estimate:
    """Return 0 with the error of the logarithm of an interpolated time.

    The error is infinite if no batch size lies between two others.
    """
    errors = left_out_errors(times, context_len)
    if not errors:
        return Estimate(0.0, inf, 1)
    return Estimate(0.0, sqrt(sum(each**2 for each in errors) / len(errors)), len(errors))


def _errors(times: MeasuredTimes, context_len: int) -> Iterator[float]:
    for k in times.lengths:
        sizes = _sizes(times, At(context_len, 0, k))
        for low, size, high in zip(sizes, sizes[1:], sizes[2:], strict=False):
            at = At(context_len, size, k)
            if _are_alike(times, at, low, size, high):
                yield log(_between(times, at, low, high).seconds / times.cells[at].seconds)


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
