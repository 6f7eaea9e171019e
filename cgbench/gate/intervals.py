"""Compute effects and their intervals. Nothing is drawn, so the same runs give the same answer.

``cgbench.statistics`` has what blocks and processes show about one run. Its forms are closed, so
there is no seed and no Monte Carlo noise. Exchanging BASE and NEW mirrors the answer to the last
bit. The interval takes Student's t at Welch's degrees of freedom. The bootstrap's percentiles
cannot leave the range of ten blocks. At the levels that many cells need, they are read from the rim
of that range.

Many cells are judged at once. Each interval is at level 1 - (1 - confidence) / m (Bonferroni), with
m the number of gated intervals. Holm's procedure rejects more but gives no intervals. Here *same*
is a claim as much as *regressed* is, and one simultaneous interval a line carries both. Metrics of
a cell share their samples, but Bonferroni holds under any dependence.
"""

from math import sqrt

from cgbench.gate.verdicts import Interval
from cgbench.statistics import Estimate


def interval(estimate: Estimate, level: float) -> Interval:
    """Return the two-sided interval of an estimate, at ``level``."""
    half = estimate.half_width(level)
    return Interval(estimate.value, estimate.value - half, estimate.value + half)


def rate_estimate(accepted: float, drafted: float) -> Estimate:
    """Return an estimate of the acceptance rate of one draft position.

    Its error is that of the rate with a success and a failure added. Agresti and Caffo (The
    American Statistician 54, 2000) add them for differences of rates.
    """
    rate = (accepted + 1) / (drafted + 2)
    error = sqrt(rate * (1 - rate) / (drafted + 2))
    return Estimate(accepted / drafted, error, max(drafted - 1, 1))
