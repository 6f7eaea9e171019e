"""Judge which wiring keeps most drafts.

Every wiring drafts from the same places, so two are compared place by place. The text that they
share then cancels out. Places of one prompt are alike, so the prompts are what counts as
independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, sqrt

import numpy as np

from cgbench.engine.acceptance_counts import accepted_per_pos
from cgbench.gate.intervals import interval, rate_estimate
from cgbench.gate.verdicts import Interval
from cgbench.request.parts import HeadWiring
from cgbench.statistics import (
    CONFIDENCE,
    Estimate,
    Floats,
    adjusted_level,
    log_length_estimate,
)
from wiring_study.drafting import Counts


@dataclass(frozen=True, slots=True)
class Tried:
    """A tried wiring is one with what it kept.

    ``length`` is its mean acceptance length and ``rates`` are its acceptance rates, one a position.
    ``behind`` is how much longer the best one's length is, or None for the best itself. The
    interval of ``behind`` holds together with those of all others.
    """

    wiring: HeadWiring
    is_declared: bool
    length: Interval
    rates: tuple[Interval, ...]
    behind: Interval | None
    kept_alike: bool
    """It kept as many drafts as the best at every start."""

    @property
    def is_apart(self) -> bool:
        """Return whether it is certainly worse than the best."""
        return self.behind is not None and self.behind.low > 0


@dataclass(frozen=True, slots=True)
class Judged:
    """This class holds every wiring that was tried, the best first."""

    tried: tuple[Tried, ...]
    num_prompts: int
    num_starts: int
    spec_tokens: int

    @property
    def contenders(self) -> tuple[Tried, ...]:
        """Return the best wiring and those that are not apart from it."""
        return tuple(each for each in self.tried if not each.is_apart)

    @property
    def winner(self) -> Tried | None:
        """Return the best wiring if every other one is apart from it, else None."""
        return self.tried[0] if len(self.contenders) == 1 else None

    @property
    def declared(self) -> Tried:
        """Return the declared wiring."""
        return next(each for each in self.tried if each.is_declared)


def judge(
    wirings: Sequence[HeadWiring], accepted: Sequence[Counts], prompt_of: Counts, spec_tokens: int
) -> Judged:
    """Judge ``wirings``, the declared one first, by what each ``accepted`` at every start.

    ``prompt_of`` is the prompt of each start. The best has the largest mean, and the declared one
    goes before its equals. One of m wirings is truly best, and each other one could wrongly seem
    better than it. So m - 1 intervals hold together (Bonferroni).
    """
    order = sorted(range(len(wirings)), key=lambda i: -int(accepted[i].sum()))
    best = accepted[order[0]]
    level = adjusted_level(CONFIDENCE, len(wirings) - 1)

    def tried(i: int) -> Tried:
        per_pos = accepted_per_pos(accepted[i].tolist(), spec_tokens)
        drafted = len(prompt_of)
        log_length = interval(log_length_estimate(per_pos, drafted), CONFIDENCE)
        behind = interval(paired_estimate(best - accepted[i], prompt_of), level)
        return Tried(
            wiring=wirings[i],
            is_declared=i == 0,
            length=_within(
                Interval(*map(exp, (log_length.estimate, log_length.low, log_length.high))),
                *(1, spec_tokens + 1),
            ),
            rates=tuple(
                _within(interval(rate_estimate(n, drafted), CONFIDENCE), 0, 1) for n in per_pos
            ),
            behind=None if i == order[0] else behind,
            kept_alike=bool((best == accepted[i]).all()),
        )

    found = tuple(tried(i) for i in order)
    return Judged(found, len(np.unique(prompt_of)), len(prompt_of), spec_tokens)


def _within(of: Interval, least: float, most: float) -> Interval:
    """Return an interval without what cannot be."""
    return Interval(of.estimate, max(of.low, least), min(of.high, most))


def paired_estimate(differences: Counts, prompt_of: Counts) -> Estimate:
    """Return the mean of ``differences``, one a start, with its standard error.

    The error is the larger of two. The first is that of the prompts' sums, because starts of one
    prompt are alike. It is infinite for a single prompt. The second takes starts as independent,
    with half a start added each way and one without a difference. So differences that are all equal
    are no certainty (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    count, mean = len(differences), float(differences.mean())
    sums: Floats = np.bincount(prompt_of, weights=differences - mean).astype(np.float64)
    num_prompts = len(np.unique(prompt_of))
    of_prompts = inf
    if num_prompts > 1:
        spread = float((sums**2).sum()) * num_prompts / (num_prompts - 1)
        of_prompts = sqrt(spread) / count
    square = (float((differences**2).sum()) + 1) / (count + 2)
    shrunk = mean * count / (count + 2)
    of_starts = sqrt((square - shrunk**2) / (count + 2))
    return Estimate(mean, max(of_prompts, of_starts), max(num_prompts - 1, 1))
