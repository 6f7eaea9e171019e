"""Find the acceptance at which each k pays: its iteration's time over that of k = 0."""

from dataclasses import dataclass
from enum import StrEnum
from math import exp

from cgbench.advice.bounded import Bounded, bounded
from cgbench.advice.cell_times import At, Group, MeasuredTimes, log_ratio
from cgbench.advice.lengths import Lengths
from cgbench.request.acceptance_lengths import conditional_rate
from cgbench.statistics import Estimate, difference


class Pays(StrEnum):
    """A ``Pays`` states whether k drafts give more tokens a second than none."""

    YES = "pays"
    NO = "costs"
    CANNOT_TELL = "cannot tell"
    OUT_OF_REACH = "out of reach"
    """It does not pay even if every draft is accepted."""
    UNKNOWN = "no acceptance known"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """A ``BreakEven`` states what acceptance k has to reach at one batch size to pay.

    ``length`` is a mean acceptance length, 1 + accepted drafts. ``rate`` is the same as a rate: how
    often each draft must be accepted, given the one before it. It is None above the reach of k.
    ``known`` is the length that is compared with it, and None if there is none.
    """

    at: At
    length: Bounded
    rate: float | None
    known: Bounded | None
    speedup: Bounded | None
    """It is the tokens a second over those of k = 0."""
    pays: Pays


def break_evens(times: MeasuredTimes, lengths: Lengths, confidence: float) -> list[BreakEven]:
    """Return the break-even of every k above 0 whose batch size has k = 0 too.

    ``confidence`` is that of all intervals together.
    """
    asked = [
        (group, k)
        for group in times.groups
        for k in times.of_group(group)
        if k and 0 in times.of_group(group)
    ]
    return [_break_even(times, lengths, group, k, confidence, len(asked)) for group, k in asked]


def _break_even(
    times: MeasuredTimes, lengths: Lengths, group: Group, k: int, confidence: float, num: int
) -> BreakEven:
    cells = times.of_group(group)
    needed = log_ratio(cells[k], cells[0])
    log_length = lengths.log_of(k)
    length = bounded(needed, confidence, num)
    gain = None if log_length is None else bounded(difference(log_length, needed), confidence, num)
    return BreakEven(
        at=At(*group, k),
        length=length,
        rate=_rate(needed, k),
        known=None if log_length is None else bounded(log_length, confidence, num),
        speedup=gain,
        pays=_pays(length, gain, k),
    )


def _rate(needed: Estimate, k: int) -> float | None:
    length = exp(needed.value)
    return None if length > k + 1 else conditional_rate(max(length, 1.0), k)


def _pays(length: Bounded, gain: Bounded | None, k: int) -> Pays:
    if length.low > k + 1:
        return Pays.OUT_OF_REACH
    if gain is None:
        return Pays.UNKNOWN
    if gain.low > 1:
        return Pays.YES
    return Pays.NO if gain.high < 1 else Pays.CANNOT_TELL
