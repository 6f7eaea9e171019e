"""Build a schedule of k by batch size, with the fewest tiers that contradict no measured size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp

from cgbench.advice.best_k import Best
from cgbench.advice.bounded import bounded
from cgbench.advice.cell_times import At, CellTime, MeasuredTimes
from cgbench.advice.interpolation import interpolation_doubt
from cgbench.advice.lengths import Lengths


@dataclass(frozen=True, slots=True)
class KTier:
    """A ``KTier`` is a stretch of batch sizes, ``first`` to ``last``, that all draft ``k``.

    ``tied`` are other k that would do as well as far as the data shows. ``measured_from`` and
    ``measured_to`` are the first and last batch size measured in the tier.
    """

    first: int
    last: int
    k: int
    tied: tuple[int, ...] = ()
    measured_from: int = 1
    measured_to: int = 1


def tiers_of(
    bests: Sequence[Best], times: MeasuredTimes, lengths: Lengths, confidence: float
) -> tuple[KTier, ...]:
    """Return tiers over 1 to the largest batch size of one context. ``bests`` ascend.

    A tier goes on for as long as one k may be the best of all its batch sizes. Of several such k
    the smallest is taken, which needs the fewest graphs. Between two tiers the smaller k is taken
    too, unless the longer one is ahead by more than interpolation may be wrong by.
    """
    stretches = _stretches(bests)
    tiers: list[KTier] = []
    for good, members in stretches:
        k, measured_from = min(good), members[0].group.batch_size
        first = 1
        if tiers:
            before = tiers[-1]
            first = _switch(before.k, k, before.last, members[0], times, lengths, confidence)
            tiers[-1] = replace(before, last=first - 1)
        tied, last = tuple(sorted(good - {k})), members[-1].group.batch_size
        tiers.append(KTier(first, last, k, tied, measured_from, last))
    return tuple(tiers)


def _stretches(bests: Sequence[Best]) -> list[tuple[frozenset[int], list[Best]]]:
    """Return neighbours that share a good k, as far as they go, with the k that they share."""
    found: list[tuple[frozenset[int], list[Best]]] = []
    for best in bests:
        shared = found[-1][0] & best.good if found else frozenset()
        if shared:
            found[-1] = shared, [*found[-1][1], best]
        else:
            found.append((best.good, [best]))
    return found


def _switch(
    old: int,
    new: int,
    last: int,
    best: Best,
    times: MeasuredTimes,
    lengths: Lengths,
    confidence: float,
) -> int:
    """Return the first batch size after ``last`` where ``new`` is taken in place of ``old``.

    The longer of the two is taken where it is ahead in time a token by more than interpolation may
    be wrong by, at ``confidence``.
    """
    context, until = best.group
    olds, news = ([times.cells.get(At(context, n, k)) for n in (last, until)] for k in (old, new))
    ends = [cell for cell in (*olds, *news) if cell is not None]
    if len(ends) < 4 or ends[2].mode != ends[3].mode:
        return until
    if ends[0].mode != ends[1].mode:
        # Where the old k loses its graphs was not measured, so it ends where it was.
        return last + 1
    old_low, old_high, new_low, new_high = (_token_time(cell, lengths) for cell in ends)
    margin = bounded(interpolation_doubt(times, context).of_ratio, confidence).high
    for n in range(last + 1, until):
        share = (n - last) / (until - last)
        over = _between(old_low, old_high, share) / _between(new_low, new_high, share)
        if over > margin if new > old else over * margin >= 1:
            return n
    return until


def _token_time(cell: CellTime, lengths: Lengths) -> float:
    """Return the seconds a token of one request."""
    log_length = lengths.log_of(cell.at.spec_tokens)
    assert log_length
    return cell.seconds / exp(log_length.value)


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)
