"""Judge a difference of two greedy answers by logprobs: a near-tie, or something else.

Batches of other sizes round sums otherwise, so a server need not answer alike. Its own noise is
how far a logprob moves when the same server computes it by another way, one request at a time: a
second decode, and a prefill of what was decoded. The first token that differs is a near-tie if both
candidates are within twice that noise. What follows a near-tie is another text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from cgbench.endpoint.answers import Answer

NEAR_TIE_NOISES = 2
"""Both candidates move by the noise."""

SHIFT_NOISES = 10
"""Most logprobs of one answer are this far off before that alone is wrong."""

FEWEST_TO_SHIFT = 8
"""Tokens of an answer whose median shift says something."""

LEAST_NOISE = 1e-3
LEAST_SHIFT = 0.02
"""Differences of logprobs below these are nobody's fault: servers round what they print."""

NO_TIE = 1.0
"""One request at a time, a difference that costs more than this is no noise: e times as likely."""


class Likeness(StrEnum):
    """A likeness is how an answer compares with the expected one."""

    EQUAL = "equal"
    NEAR_TIE = "near-tie"
    WRONG = "wrong"
    UNJUDGED = "unjudged"
    """It differs, and there are no logprobs to judge it by."""


@dataclass(frozen=True, slots=True)
class Noise:
    """A ``Noise`` measures how far logprobs move when the same server computes them again.

    ``token`` is the furthest that one moved. ``answer`` is the largest median of one answer.
    ``positions`` counts what both rest on.
    """

    token: float = 0.0
    answer: float = 0.0
    positions: int = 0

    @property
    def near_tie(self) -> float:
        """Return the largest gap that is a near-tie."""
        return NEAR_TIE_NOISES * max(self.token, LEAST_NOISE)

    @property
    def shift(self) -> float:
        """Return the largest median shift of an answer that is noise."""
        return max(SHIFT_NOISES * self.answer, LEAST_SHIFT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An outcome states how one answer was judged, and where it first differs.

    ``gap`` is a lower bound of the logprob gap between the two candidates at ``position``.
    """

    likeness: Likeness
    text: str = ""
    position: int | None = None
    gap: float | None = None
    expected: str | None = None
    got: str | None = None


def judge(expected: Answer, got: Answer, noise: Noise, *, is_exact: bool = False) -> Outcome:
    """Judge the answer ``got`` against ``expected``, which has as many tokens.

    ``is_exact``: the server computes exactly enough that every difference is wrong.
    """
    position = first_difference(expected.tokens, got.tokens)
    if got.is_text and _begins(expected, got):
        position = None
    found = _of_token(expected, got, position, noise, is_exact=is_exact)
    if found.likeness in (Likeness.WRONG, Likeness.UNJUDGED):
        return found
    return _not_likeliest(got, noise) or _shifted(expected, got, position, noise) or found


def measure_noise(pairs: Iterable[tuple[Answer, Answer]]) -> Noise:
    """Return the noise of pairs of answers, as far as the tokens of each pair are the same."""
    largest = of_answers = 0.0
    positions = 0
    for expected, got in pairs:
        shifts = shifts_of(expected, got)
        positions += len(shifts)
        largest = max(largest, *shifts, _tie(expected, got)) if shifts else largest
        if len(shifts) >= FEWEST_TO_SHIFT // 2:
            of_answers = max(of_answers, median(shifts))
    return Noise(largest, of_answers, positions)


def first_difference(expected: Sequence[str], got: Sequence[str]) -> int | None:
    """Return the first position at which two answers differ. A shorter one differs at its end."""
    if expected == got:
        return None
    pairs = zip(expected, got, strict=False)
    shorter = min(len(expected), len(got))
    return next((i for i, (ours, its) in enumerate(pairs) if ours != its), shorter)


def shifts_of(expected: Answer, got: Answer) -> list[float]:
    """Return how far the logprob of each token moved, up to the first difference."""
    position = first_difference(expected.tokens, got.tokens)
    pairs = zip(expected.logprobs, got.logprobs, strict=False)
    return [abs(ours - its) for ours, its in [*pairs][:position]]


def gap_at(expected: Answer, got: Answer, position: int) -> float | None:
    """Return the larger of the two logprob gaps between both candidates, or None without logprobs.

    If a candidate is not among those that the server lists, the gap is at least what the list says.
    """
    if position >= min(len(expected.tops), len(got.tops)):
        return None
    ours, its = expected.tokens[position], got.tokens[position]
    gaps = (
        _gap(expected.tops[position], ours, its),
        _gap(got.tops[position], its, ours),
    )
    return None if None in gaps else max(each for each in gaps if each is not None)


def _gap(top: Mapping[str, float], chosen: str, other: str) -> float | None:
    if chosen not in top or (other not in top and len(top) < 2):
        return None
    return top[chosen] - top.get(other, min(top.values()))


def _begins(expected: Answer, got: Answer) -> bool:
    """Return whether text begins another.

    Half of a character that is cut at its end does not count.
    """
    return bool(got.text) and expected.text.startswith(got.text.rstrip("\ufffd"))


def _tie(expected: Answer, got: Answer) -> float:
    """Return the gap of a first difference that may be noise, or 0 if there is none."""
    position = first_difference(expected.tokens, got.tokens)
    gap = None if position is None else gap_at(expected, got, position)
    return gap / NEAR_TIE_NOISES if gap is not None and gap <= NO_TIE else 0.0


def _of_token(
    expected: Answer, got: Answer, position: int | None, noise: Noise, *, is_exact: bool
) -> Outcome:
    if position is None:
        return Outcome(Likeness.EQUAL)
    if position == min(len(expected.tokens), len(got.tokens)):
        return _of_length(expected, got, position, is_exact=is_exact)
    ours, its = expected.tokens[position], got.tokens[position]
    gap = gap_at(expected, got, position)
    if gap is None:
        likeness = Likeness.WRONG if is_exact else Likeness.UNJUDGED
    else:
        is_tie = gap <= min(noise.near_tie, NO_TIE) and not is_exact
        likeness = Likeness.NEAR_TIE if is_tie else Likeness.WRONG
    text = f"token {position} is {its!r}, not {ours!r}"
    return Outcome(likeness, text, position, gap, ours, its)


def _of_length(expected: Answer, got: Answer, position: int, *, is_exact: bool) -> Outcome:
    """Judge a pair of which one begins the other.

    An end of text may be a near-tie too, but no list shows it.
    """
    shorter = min((expected, got), key=lambda answer: len(answer.tokens))
    may_tie = shorter.finish == "stop" and not is_exact
    text = f"{len(got.tokens)} tokens where {len(expected.tokens)} were expected"
    likeness = Likeness.UNJUDGED if may_tie else Likeness.WRONG
    return Outcome(likeness, text, position)


def _not_likeliest(got: Answer, noise: Noise) -> Outcome | None:
    """Find a token that was emitted though the server's own list has a likelier one."""
    for position, (token, top) in enumerate(zip(got.tokens, got.tops, strict=False)):
        best = max(top, key=lambda name: top[name])
        gap = top[best] - top[token]
        if gap > noise.near_tie:
            text = f"token {position} is {token!r}, where {best!r} is likelier in its own list"
            return Outcome(Likeness.WRONG, text, position, gap, best, token)
    return None


def _shifted(expected: Answer, got: Answer, position: int | None, noise: Noise) -> Outcome | None:
    shifts = shifts_of(expected, got)
    if len(shifts) < FEWEST_TO_SHIFT or (middle := median(shifts)) <= noise.shift:
        return None
    text = f"logprobs are off by {middle:.3g}, the median of {len(shifts)} tokens"
    return Outcome(Likeness.WRONG, text, position, middle)


def ties_in(outcomes: Iterable[Outcome]) -> tuple[int, float]:
    """Return how many answers parted from the expected one at a near-tie, and the largest gap."""
    gaps = [each.gap for each in outcomes if each.likeness is Likeness.NEAR_TIE]
    return len(gaps), max((gap for gap in gaps if gap is not None), default=0.0)


def worst(outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    """Yield wrong outcomes first, then those that cannot be judged, then the rest."""
    order = (Likeness.WRONG, Likeness.UNJUDGED, Likeness.NEAR_TIE, Likeness.EQUAL)
    for likeness in order:
        yield from (each for each in outcomes if each.likeness is likeness)
