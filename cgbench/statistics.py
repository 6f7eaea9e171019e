"""Compute a time's value and its standard error from blocks or processes.

The stopping rule that ends a run uses this module, and so does the comparison that judges the run.
So a cell is measured until it is known as well as the gate will know it. No random numbers are
drawn.

Iterations inside a block are correlated, so a block's median is one observation. A cell's centre is
the median of its blocks. Its standard error is the bootstrap's over resampled blocks, in closed
form. The distribution of a resample's two middle order statistics is known exactly (Maritz and
Jarrett, JASA 73, 1978, for odd sizes). The even case counts the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, hypot, inf, log, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaln, stdtrit

Floats: TypeAlias = NDArray[np.float64]

CONFIDENCE = 0.95
"""This is the confidence of the half-width that a run reports and stops by."""

# More would ask for over nineteen times the blocks. In few blocks it looks like a trend.
MAX_CORRELATION = 0.9


# How far from the middle a resample's middle may lie, in standard deviations of its rank,
# sqrt(n) / 2. The chance of more is below a float64's precision. So n blocks need some 100 n
# numbers, not n squared.
REACH = 10


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate is a value with its standard error and its degrees of freedom.

    The error is infinite if the data does not determine it, as with a single block.
    """

    value: float
    error: float = 0.0
    freedom: float = inf

    def half_width(self, level: float) -> float:
        """Return half the width of the two-sided interval at ``level``, by Student's t.

        It is 0 if there is no error.
        """
        return self.error * float(stdtrit(self.freedom, (1 + level) / 2)) if self.error else 0.0


def median_estimate(values: Floats) -> Estimate:
    """Return the median of independent ``values [n]``, with its bootstrap standard error.

    The error is infinite for fewer than two values.
    """
    n = len(values)
    middle = float(np.median(values))
    if n < 2:
        return Estimate(middle, inf, 1)
    weights = _middle_pairs(n)
    skipped = (n - len(weights)) // 2
    away = np.sort(values)[skipped : n - skipped] - middle
    halves = (away[:, None] + away) / 2
    mean = float((weights * halves).sum())
    variance = float((weights * halves**2).sum()) - mean**2
    return Estimate(middle, sqrt(max(variance, 0.0)), n - 1)


def blocks_estimate(values: Floats) -> Estimate:
    """Return the median of ``values [n]``, one a block, in the order measured.

    It is ``median_estimate`` with an error that is widened by the correlation of neighbours.
    """
    plain = median_estimate(values)
    return Estimate(plain.value, plain.error * sqrt(repetition(values)), plain.freedom)


def repetition(values: Floats) -> float:
    """Return how many correlated blocks are worth one independent block, at least 1.

    The number of blocks divided by it is the effective sample size. It is (1 + r) / (1 - r), as for
    a first-order autoregression. r is the lag-1 autocorrelation without its bias of -(1 + 3r) / n
    (Marriott and Pope, Biometrika 41, 1954). It is held between 0 and ``MAX_CORRELATION``.
    """
    n = len(values)
    away = values - values.mean()
    total = float(away @ away)
    if n < 3 or not total:
        return 1.0
    lag1 = float(away[1:] @ away[:-1]) / total
    r = min(max(lag1 + (1 + 3 * lag1) / n, 0.0), MAX_CORRELATION)
    return (1 + r) / (1 - r)


def processes_estimate(values: Floats) -> Estimate:
    """Return the mean of ``values [n]``, one a process, with its standard error.

    The error holds what differs between processes. It is infinite for one process. The value is a
    mean and not a median, because the bootstrap's error of a median of three to five values is far
    too small.
    """
    n = len(values)
    error = float(values.std(ddof=1)) / sqrt(n) if n > 1 else inf
    return Estimate(float(values.mean()), error, max(n - 1, 1))


def log_length_estimate(accepted: Sequence[float], drafted: float) -> Estimate:
    """Return the log of the mean acceptance length, from counts per draft position.

    ``accepted`` counts accepted drafts at each of k positions, over ``drafted`` rows. A draft is
    accepted only after all before it, so the counts determine the exact variance. Half a row is
    added to each of the k + 1 outcomes for the variance alone (Jeffreys). A rate of 0 or 1 in a few
    rows is no certainty.

    Rows count as independent. Those of one request are not quite, which makes the interval too
    narrow. Prompts are the same in both runs, which makes it too wide.
    """
    k = len(accepted)
    length = 1 + sum(accepted) / drafted
    reached = [(count + (k - j) / 2) / (drafted + (k + 1) / 2) for j, count in enumerate(accepted)]
    mean = sum(reached)
    square = sum((2 * j + 1) * rate for j, rate in enumerate(reached))
    error = sqrt((square - mean**2) / drafted) / length
    return Estimate(log(length), error, max(drafted - 1, 1))


def difference(left: Estimate, right: Estimate) -> Estimate:
    """Return ``left - right`` of independent estimates, with degrees of freedom after Welch."""
    error = hypot(left.error, right.error)
    if error in (0, inf):
        return Estimate(left.value - right.value, error, 1)
    shares = ((each.error / error) ** 4 / each.freedom for each in (left, right))
    return Estimate(left.value - right.value, error, 1 / sum(shares))


def adjusted_level(confidence: float, num_intervals: int) -> float:
    """Return the level of each of ``num_intervals`` intervals that are to hold together.

    ``confidence`` is that of all of them together (Bonferroni).
    """
    return 1 - (1 - confidence) / max(num_intervals, 1)


@lru_cache(maxsize=64)
def _middle_pairs(n: int) -> Floats:
    """Return ``[m, m]``: the chance of each pair of order statistics i <= j.

    The pair is the two that a resample of n has in its middle. An odd n has one in its middle, so
    only the diagonal counts. Only the m order statistics in the middle of n are looked at
    (``REACH``).
    """
    lower = (n + 1) // 2
    first = max(lower - ceil(REACH * sqrt(n) / 2), 1)
    rank = np.arange(first, n + 2 - first)
    edges = np.arange(first - 1, n + 2 - first) / n
    is_lower = np.diff(betainc(lower, n - lower + 1, edges))
    if n % 2:
        return np.diag(is_lower)
    # For i < j, half the draws are at most i, with one i among them. The others are at least j,
    # with one j among them.
    ways = gammaln(n + 1) - 2 * gammaln(lower + 1)
    below = lower * np.log(rank / n) + np.log1p(-(((rank - 1) / rank) ** lower))
    is_apart = rank[:, None] < rank
    apart = np.exp(np.where(is_apart, ways + below[:, None] + below[::-1], -inf))
    pairs: Floats = apart + np.diag(is_lower - apart.sum(axis=1))
    return pairs
