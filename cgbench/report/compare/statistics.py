"""Effects and their intervals. Pure; nothing is drawn, so the same runs give the same answer.

The unit of evidence is the block: iterations inside one are correlated, and its median is one
observation. A run's centre is the median of its blocks. Its standard error is the bootstrap's,
over blocks resampled within the run, in closed form: the distribution of a resample's two middle
order statistics is known exactly (Maritz and Jarrett, JASA 73, 1978, for odd sizes; the even case
counts the same way), so there is no seed and no Monte Carlo noise, and swapping BASE and NEW
mirrors the answer to the last bit. The interval takes Student's t at Welch's degrees of freedom
rather than the bootstrap's percentiles: those cannot leave the range of ten blocks, and at the
levels that many cells need they are read from the rim of it.

Many cells are judged at once: each interval is at level 1 - (1 - confidence) / m (Bonferroni), m
the gated intervals. Holm's procedure rejects more but gives no intervals, and here *same* is a
claim as much as *regressed* is: one simultaneous interval a line carries both. Metrics of a cell
share their samples; Bonferroni holds under any dependence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import hypot, inf, log, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaln, stdtrit

from cgbench.report.compare.verdicts import Interval

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its standard error (infinite where nothing tells it) and degrees of freedom."""

    value: float
    error: float = 0.0
    freedom: float = inf


def median_estimate(values: Floats) -> Estimate:
    """The median of ``values [n]``, one a block, with its bootstrap standard error."""
    n = len(values)
    middle = float(np.median(values))
    if n < 2:
        return Estimate(middle, inf, 1)
    away = np.sort(values) - middle
    weights, halves = _middle_pairs(n), (away[:, None] + away) / 2
    mean = float((weights * halves).sum())
    variance = float((weights * halves**2).sum()) - mean**2
    return Estimate(middle, sqrt(max(variance, 0.0)), n - 1)


@lru_cache(maxsize=8)
def _middle_pairs(n: int) -> Floats:
    """``[n, n]``: the chance that order statistics i <= j are the two that a resample of n has in
    its middle; on the diagonal alone for odd n, which has one."""
    rank = np.arange(1, n + 1)
    lower = (n + 1) // 2
    is_lower = np.diff(betainc(lower, n - lower + 1, rank / n), prepend=0)
    if n % 2:
        return np.diag(is_lower)
    # i < j: half the draws are at most i with one i among them, the others at least j with one j.
    ways = gammaln(n + 1) - 2 * gammaln(lower + 1)
    below = lower * np.log(rank / n) + np.log1p(-(((rank - 1) / rank) ** lower))
    is_apart = rank[:, None] < rank
    apart = np.exp(np.where(is_apart, ways + below[:, None] + below[::-1], -inf))
    pairs: Floats = apart + np.diag(is_lower - apart.sum(axis=1))
    return pairs


def log_length_estimate(accepted: Sequence[int], drafted: int) -> Estimate:
    """The log of the mean acceptance length, from counts per draft position.

    A draft is accepted only after all before it, so the counts give every row's ``accepted``:
    its variance is exact. Half a row is added to each of the k + 1 outcomes for the variance
    alone (Jeffreys), for rates of 0 or 1 in a few rows are no certainty. Rows count as
    independent; those of one request are not quite, and prompts are the same in both runs: the
    first makes the interval too narrow, the second too wide.
    """
    k = len(accepted)
    length = 1 + sum(accepted) / drafted
    reached = [(count + (k - j) / 2) / (drafted + (k + 1) / 2) for j, count in enumerate(accepted)]
    mean = sum(reached)
    square = sum((2 * j + 1) * rate for j, rate in enumerate(reached))
    error = sqrt((square - mean**2) / drafted) / length
    return Estimate(log(length), error, max(drafted - 1, 1))


def difference(left: Estimate, right: Estimate) -> Estimate:
    """``left - right`` of independent estimates; degrees of freedom after Welch."""
    error = hypot(left.error, right.error)
    if error in (0, inf):
        return Estimate(left.value - right.value, error, 1)
    shares = ((each.error / error) ** 4 / each.freedom for each in (left, right))
    return Estimate(left.value - right.value, error, 1 / sum(shares))


def interval(estimate: Estimate, level: float) -> Interval:
    """Two-sided, at ``level``."""
    if estimate.error == 0:
        return Interval(estimate.value, estimate.value, estimate.value)
    half = estimate.error * float(stdtrit(estimate.freedom, (1 + level) / 2))
    return Interval(estimate.value, estimate.value - half, estimate.value + half)


def rate_estimate(accepted: int, drafted: int) -> Estimate:
    """The rate of one draft position. Its error is of the rate with a success and a failure added,
    as Agresti and Caffo (The American Statistician 54, 2000) do for differences of rates."""
    rate = (accepted + 1) / (drafted + 2)
    error = sqrt(rate * (1 - rate) / (drafted + 2))
    return Estimate(accepted / drafted, error, max(drafted - 1, 1))


def adjusted_level(confidence: float, num_intervals: int) -> float:
    """The level of each of ``num_intervals`` that makes ``confidence`` hold for all together."""
    return 1 - (1 - confidence) / max(num_intervals, 1)
