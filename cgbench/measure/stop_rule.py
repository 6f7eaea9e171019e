"""Decide when a batch size has been measured long enough. The rule reads block medians, and there
is no torch here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cgbench.statistics import CONFIDENCE, blocks_estimate

MIN_BLOCKS = 8
"""The least number of blocks. With fewer, neither the error of a median nor a correlation of
neighbours is known.
"""


class StoppingRule(Protocol):
    """A ``StoppingRule`` is asked after every round whether to end the measurement."""

    def is_over(self, rounds: int, elapsed_s: float, medians: Sequence[Sequence[float]]) -> bool:
        """Return whether the measurement may end.

        ``medians`` holds the medians of each deciding cell's kept blocks, in seconds and in the
        order measured.
        """
        ...


@dataclass(frozen=True, slots=True)
class UntilPrecise:
    """This rule ends a measurement once the median of every deciding cell is known to
    ``precision``, a fraction.

    It never ends before ``MIN_BLOCKS`` rounds and ``min_time_s``. After these, it ends at
    ``max_time_s`` in any case.
    """

    precision: float
    min_time_s: float
    max_time_s: float

    def is_over(self, rounds: int, elapsed_s: float, medians: Sequence[Sequence[float]]) -> bool:
        if rounds < MIN_BLOCKS or elapsed_s < self.min_time_s:
            return False
        return elapsed_s >= self.max_time_s or all(map(self.is_settled, medians))

    def is_settled(self, medians: Sequence[float]) -> bool:
        """Return whether one cell has enough blocks, and whether they agree well enough."""
        half_width = relative_half_width(medians)
        return len(medians) >= MIN_BLOCKS and half_width is not None and self.allows(half_width)

    def allows(self, half_width: float) -> bool:
        """Return whether a relative half-width is as small as asked."""
        return half_width <= self.precision


def relative_half_width(medians: Sequence[float]) -> float | None:
    """Return half the interval of a cell's median at ``CONFIDENCE``, as a fraction of the median.
    Return None if there are fewer than two blocks.

    ``medians`` are seconds above 0, one a block, in the order measured.
    """
    if len(medians) < 2:
        return None
    # The half-width of the logarithms is relative to the median.
    return blocks_estimate(np.log(medians)).half_width(CONFIDENCE)


def doubt(rule: UntilPrecise, medians: Mapping[str, Sequence[float]]) -> str | None:
    """Return a line if the machine was too noisy for the precision asked, else None.

    ``medians`` holds those of the deciding cells, by the cell's name.
    """
    reached = {name: relative_half_width(values) for name, values in medians.items()}
    short = [name for name, values in medians.items() if not rule.is_settled(values)]
    if not short:
        return None
    worst = max(short, key=lambda name: reached[name] or float("inf"))
    return (
        f"{len(short)} of {len(medians)} cells are not known to {_percent(rule.precision)} "
        f"(--precision): {worst} to {_percent(reached[worst])}. "
        "A longer --max-time or a quieter machine would tell more"
    )


def _percent(fraction: float | None) -> str:
    return "nothing, for no two blocks were kept" if fraction is None else f"{100 * fraction:.3g} %"
