"""Effects and their intervals. Pure; nothing is drawn, so the same runs give the same answer.

``cgbench.statistics`` has what blocks and processes say about one run. Its forms are closed, so
there is no seed and no Monte Carlo noise. Exchanging BASE and NEW mirrors the answer to the last
bit. The interval takes Student's t at Welch's degrees of freedom. The bootstrap's percentiles
cannot leave the range of ten blocks, and at the levels that many cells need they are read from the
rim of it.

Many cells are judged at once: each interval is at level 1 - (1 - confidence) / m (Bonferroni), m
the gated intervals. Holm's procedure rejects more but gives no intervals, and here *same* is a
claim as much as *regressed* is: one simultaneous interval a line carries both. Metrics of a cell
share their samples; Bonferroni holds under any dependence.
"""

from collections.abc import Sequence
from math import hypot, inf, log, sqrt

from cgbench.gate.verdicts import Interval
from cgbench.statistics import Estimate


def log_length_estimate(accepted: Sequence[float], drafted: float) -> Estimate:
    """The log of the mean acceptance length, from counts per draft position.

    A draft is accepted only after all before it, so the counts give every row's ``accepted``: its
    variance is exact. Half a row is added to each of the k + 1 outcomes for the variance alone
    (Jeffreys), because rates of 0 or 1 in a few rows are no certainty. Rows count as independent.
    Those of one request are not quite, which makes the interval too narrow. Prompts are the same in
    both runs, which makes it too wide.
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
    half = estimate.half_width(level)
    return Interval(estimate.value, estimate.value - half, estimate.value + half)


def rate_estimate(accepted: float, drafted: float) -> Estimate:
    """The rate of one draft position. Its error is of the rate with a success and a failure added,
    as Agresti and Caffo (The American Statistician 54, 2000) do for differences of rates."""
    rate = (accepted + 1) / (drafted + 2)
    error = sqrt(rate * (1 - rate) / (drafted + 2))
    return Estimate(accepted / drafted, error, max(drafted - 1, 1))


def adjusted_level(confidence: float, num_intervals: int) -> float:
    """The level of each of ``num_intervals`` that makes ``confidence`` hold for all together."""
    return 1 - (1 - confidence) / max(num_intervals, 1)
