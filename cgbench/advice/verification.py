"""Compare what was advised with a second measurement, cell by cell and as a gain."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

from cgbench.advice.advise import Advice, ContextAdvice
from cgbench.advice.bounded import Bounded, bounded
from cgbench.advice.cell_times import At, MeasuredTimes
from cgbench.advice.gains import Ground, Work, fixed_lengths, gain_over, is_timed
from cgbench.advice.interpolation import interpolation_doubt, time_at


@dataclass(frozen=True, slots=True)
class Again:
    """An ``Again`` is a time in seconds, or a gain over the fixed k of ``at``, predicted and
    measured.

    ``agrees`` states that the intervals meet, each wider by the least effect that counts. They are
    wider because two runs of one machine differ by more than the blocks of either show.
    """

    at: At
    predicted: Bounded
    measured: Bounded
    agrees: bool


def to_verify(advice: ContextAdvice) -> tuple[list[int], list[int]]:
    """Return the k and the batch sizes to measure again.

    The sizes are the ends of every tier. The k are those of the tiers and the fixed ones.
    """
    lengths = {tier.k for tier in advice.chosen} | {gain.k for gain in advice.gains}
    sizes = {size for tier in advice.chosen for size in (tier.first, tier.last)}
    return sorted(lengths), sorted(sizes)


def cells_again(advice: Advice, again: MeasuredTimes) -> list[Again]:
    """Return each cell of ``again`` whose time the advice's runs measured or can interpolate."""
    found = (_cell(advice, again, at) for at in sorted(again.cells))
    return [each for each in found if each is not None]


def gains_again(advice: Advice, again: MeasuredTimes) -> list[Again]:
    """Return each gain that is advised, measured over the batch sizes of ``again``, each alike."""
    found = (
        _gain(advice, again, each, gain.k)
        for each in advice.contexts
        if each.context_len in again.contexts and each.chosen
        for gain in each.gains
    )
    return [each for each in found if each is not None]


def _cell(advice: Advice, again: MeasuredTimes, at: At) -> Again | None:
    # A padded batch takes what its bucket takes.
    mix = time_at(advice.times, at._replace(batch_size=again.cells[at].bucket))
    if mix is None:
        return None
    doubt = interpolation_doubt(advice.times, at.context_len).of_time
    estimate = (
        mix.parts[0][0].log_estimate if mix.is_measured else replace(doubt, value=log(mix.seconds))
    )
    return _again(
        at,
        bounded(estimate, advice.question.confidence),
        bounded(again.cells[at].log_estimate, advice.question.confidence),
        advice.question.min_effect,
    )


def _gain(advice: Advice, again: MeasuredTimes, each: ContextAdvice, k: int) -> Again | None:
    """Return a gain predicted and measured, or None if a cell of either side has no time."""
    sizes = again.batch_sizes(each.context_len)
    work = Work(dict.fromkeys(sizes, 1 / len(sizes)), "measured again")
    # A padded batch takes what its bucket takes.
    buckets = {
        (at.batch_size, at.spec_tokens): cell.bucket
        for at, cell in again.cells.items()
        if at.context_len == each.context_len
    }
    grounds = [
        Ground(advice.times, advice.lengths, each.context_len, work, buckets),
        Ground(again, advice.lengths, each.context_len, work),
    ]
    if not all(k in fixed_lengths(one) and is_timed(each.chosen, one) for one in grounds):
        return None
    predicted, measured = (
        gain_over(k, each.chosen, one, advice.question.confidence).speedup for one in grounds
    )
    at = At(each.context_len, 0, k)
    return _again(at, predicted, measured, advice.question.min_effect)


def _again(at: At, predicted: Bounded, measured: Bounded, allowed: float) -> Again:
    low, high = predicted.low / (1 + allowed), predicted.high * (1 + allowed)
    return Again(at, predicted, measured, low <= measured.high and measured.low <= high)


def all_agree(found: Sequence[Again]) -> bool:
    """Check that every prediction agrees with its second measurement."""
    return all(each.agrees for each in found)
