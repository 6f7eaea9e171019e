"""Compare how many drafts are kept at an edge with how many are kept one request at a time.

Greedy decoding emits the target's tokens whatever the drafter does, so only acceptance shows a
drafter that is broken under some graphs. The same prompts are decoded on both sides.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import sqrt

from cgbench.endpoint.engine_counters import Drafted
from cgbench.gate.intervals import interval, rate_estimate
from cgbench.statistics import Estimate, adjusted_level, difference

CONFIDENCE = 0.99
"""That no edge of an audit is called wrong by chance."""

LEAST_EFFECT = 0.2
"""Share of the acceptance alone by which another must differ to matter."""

LEAST_POINTS = 0.05

LARGEST_MISSED = 0.3
"""Share of the acceptance alone that may be lost unseen before more drafts are worth asking for."""

FEWEST_DRAFTS = 30
"""Fewer say nothing, as where most steps of a probe ran at k = 0."""

FEWEST_WITHOUT_ANY = 50
"""So many drafts of which none was kept are a broken drafter: at 5 % one would be, 12 to 1."""


class Acceptance(StrEnum):
    """An ``Acceptance`` is the verdict on the drafts at one edge, by the server's counters."""

    SAME = "same"
    DIFFERS = "differs"
    UNDECIDED = "undecided"
    """It seems to differ, and there are too few drafts to be sure."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class AcceptanceFound:
    """An ``AcceptanceFound`` states how acceptance at an edge differs from acceptance alone.

    Rates are draft tokens kept a draft, or the rate of the draft position that differs most.
    """

    answer: Acceptance
    alone: float | None = None
    here: float | None = None
    low: float | None = None
    high: float | None = None
    num_drafts: int = 0
    text: str = ""

    @property
    def may_hide_a_loss(self) -> bool:
        """Return whether so few drafts were judged that a large loss would look the same."""
        return self.alone is not None and (self.low or 0.0) < -LARGEST_MISSED * self.alone


@dataclass(frozen=True, slots=True)
class _Question:
    what: str
    alone: Estimate
    here: Estimate

    def judged(self, level: float, num_drafts: int, *, in_parts: bool) -> AcceptanceFound:
        found = interval(difference(self.here, self.alone), level)
        alone, here = self.alone.value, self.here.value
        far = abs(found.estimate) >= max(LEAST_EFFECT * max(alone, here), LEAST_POINTS)
        matters = far and not (in_parts and here > alone)
        excludes = found.low > 0 or found.high < 0
        answer = Acceptance.SAME
        if matters:
            answer = Acceptance.DIFFERS if excludes else Acceptance.UNDECIDED
        text = (
            f"{self.what}: {here:.3g} kept a draft, {alone:.3g} alone, "
            f"difference {found.low:+.3g} to {found.high:+.3g}, {num_drafts} drafts"
        )
        return AcceptanceFound(answer, alone, here, found.low, found.high, num_drafts, text)


def judge_acceptance(
    alone: Drafted | None,
    here: Drafted | None,
    *,
    num_edges: int,
    copies: float,
    spec_tokens: int,
    first_only: bool,
    in_parts: bool = False,
) -> AcceptanceFound:
    """Judge the drafts of one edge against those of the same prompts alone.

    ``copies`` is how often each prompt is counted. Equal requests draft alike, so they are no more
    evidence.
    ``first_only``: there are several draft lengths, so only draft 1 is comparable.
    ``in_parts``: some batch sizes run without drafts, so parts of the texts alone are counted here.
    Those may be easier than the whole, as a text's end is. So only fewer drafts kept are a fault.
    """
    if here is None or alone is None or here.num_drafts < FEWEST_DRAFTS:
        return AcceptanceFound(Acceptance.UNKNOWN)
    num_drafts = round(here.num_drafts)
    if without_any(here):
        text = f"none of {num_drafts} drafts was kept"
        return AcceptanceFound(Acceptance.DIFFERS, alone.mean_accepted, 0.0, None, None, 0, text)
    if alone.num_drafts < FEWEST_DRAFTS:
        return AcceptanceFound(Acceptance.UNKNOWN)
    questions = _questions(alone, here, copies, spec_tokens, first_only=first_only)
    if not questions:
        return AcceptanceFound(Acceptance.UNKNOWN)
    level = adjusted_level(CONFIDENCE, num_edges * len(questions))
    answers = [question.judged(level, num_drafts, in_parts=in_parts) for question in questions]
    for wanted in (Acceptance.DIFFERS, Acceptance.UNDECIDED):
        if found := [each for each in answers if each.answer is wanted]:
            return found[0]
    return answers[0]


def without_any(drafted: Drafted | None) -> bool:
    """Return whether so many drafts were made and none kept that the drafter must be broken."""
    return drafted is not None and drafted.num_drafts >= FEWEST_WITHOUT_ANY and not drafted.accepted


def _questions(
    alone: Drafted,
    here: Drafted,
    copies: float,
    spec_tokens: int,
    *,
    first_only: bool,
) -> list[_Question]:
    positions = min(len(alone.by_position), len(here.by_position))
    whole = _mean(alone, copies, spec_tokens), _mean(here, copies, spec_tokens)
    found = [] if first_only else [_Question("draft tokens", *whole)]
    return found + [
        _Question(f"draft {at + 1}", _rate(alone, at, copies), _rate(here, at, copies))
        for at in range(min(positions, 1) if first_only else positions)
    ]


def _rate(drafted: Drafted, position: int, copies: float) -> Estimate:
    return rate_estimate(drafted.by_position[position] / copies, drafted.num_drafts / copies)


def _mean(drafted: Drafted, copies: float, spec_tokens: int) -> Estimate:
    """Return the mean number kept.

    A draft token is kept after all before it, so counts by position give the variance. Without
    them it is at most that of all or none being kept.
    """
    mean, drafts = drafted.mean_accepted, drafted.num_drafts / copies
    most = max(spec_tokens, mean, 1.0)
    if drafted.by_position:
        # One draft is added, an equal share of it to each outcome: few drafts are no certainty.
        k, count = len(drafted.by_position), drafts + 1
        rates = [
            (kept / copies + (k - at) / (k + 1)) / count
            for at, kept in enumerate(drafted.by_position)
        ]
        square = sum((2 * at + 1) * rate for at, rate in enumerate(rates))
        variance = max(square - sum(rates) ** 2, 0.0)
    else:
        padded = (mean * drafts + most / 2) / (drafts + 1)
        variance = padded * (most - padded)
    return Estimate(mean, sqrt(variance / drafts), max(drafts - 1, 1))
