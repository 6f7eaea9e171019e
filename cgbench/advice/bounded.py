"""Hold a ratio or a length with its interval, as it is shown."""

from dataclasses import dataclass
from math import exp, inf

from cgbench.statistics import Estimate, adjusted_level


@dataclass(frozen=True, slots=True)
class Bounded:
    """A ``Bounded`` is a value with the interval that holds it.

    The interval is as wide as can be if no data bounds it.
    """

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Check that the data bounds the value from above."""
        return self.high < inf


def bounded(log_estimate: Estimate, confidence: float, num_intervals: int = 1) -> Bounded:
    """Return the value whose logarithm is ``log_estimate``, with its interval.

    ``confidence`` is that of ``num_intervals`` together (Bonferroni).
    """
    half = log_estimate.half_width(adjusted_level(confidence, num_intervals))
    value = log_estimate.value
    return Bounded(exp(value), exp(value - half), _exp(value + half))


def _exp(value: float) -> float:
    return exp(value) if value < 700 else inf
