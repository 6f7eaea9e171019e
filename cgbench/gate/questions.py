"""A question asks two runs for one measured quantity that both should hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log, nan
from typing import TypeAlias, cast

import numpy as np
import pandas as pd

from cgbench.gate.evidence import Evidence, LinePlace, Observed, Place
from cgbench.gate.intervals import rate_estimate
from cgbench.gate.pairs import Pair
from cgbench.gate.verdicts import (
    ACCEPTANCE,
    CAPTURE,
    HOST_GAP,
    ITERATION,
    MEMORY,
    STAGES,
    TPOT,
    Metric,
    acceptance_rate,
)
from cgbench.request.acceptance_lengths import stated_length
from cgbench.rundir.block_times import WALL
from cgbench.rundir.schema import COLD
from cgbench.rundir.summary import with_costs
from cgbench.statistics import Estimate, difference, log_length_estimate, median_estimate
from cgbench.words import StageKind, Status

NO_EFFECT = Estimate(0.0)
UNKNOWN = Estimate(nan, inf, 1)

TIMES = (StageKind.ITERATION.value, WALL, StageKind.HOST_GAP.value, *(s.name for s in STAGES))
"""The columns of times that evidence holds for a cell, if they were measured."""

GRAPH = ["phase", "spec_tokens", "bucket"]

Maybe: TypeAlias = Observed | None
Counts: TypeAlias = Sequence[tuple[float, float]]
"""(accepted, drafted), a draft position each."""


@dataclass(frozen=True, slots=True)
class Question:
    """A ``Question`` holds one quantity in both runs.

    ``base`` and ``new`` are in seconds, bytes, tokens or a rate. ``effect`` is their log ratio, or
    the difference of two rates. It has no error if both are the very same measurement or are exact.
    It is None if ``reason`` states what is missing. ``blocks`` counts what it rests on.
    """

    metric: Metric
    where: LinePlace
    base: float | None = None
    new: float | None = None
    effect: Estimate | None = None
    blocks: tuple[int, int] | None = None
    reason: str = ""
    is_disturbed: bool = field(default=False, kw_only=True)
    effective: tuple[float, float] | None = field(default=None, kw_only=True)
    """The number of independent blocks that ``blocks`` are worth."""

    @property
    def is_test(self) -> bool:
        """Return whether its answer rests on an interval, which can be wrong."""
        return self.effect is not None and self.effect.error > 0


def cell_questions(pair: Pair, base: Evidence, new: Evidence) -> Iterator[Question]:
    """Yield a question for everything measured of one cell that both runs have numbers for."""
    assert pair.base and pair.new
    place = pair.place
    is_one = _is_one(place, base, new)
    for metric in (ITERATION, *STAGES):
        times = [run.observed.get((place, metric.name)) for run in (base, new)]
        if metric is ITERATION or not all(each is None for each in times):
            yield _of_blocks(metric, place, times[0], times[1], is_one)
    # Both runs have the same prompts.
    copies = base.record.copies(pair.base.settings["acceptance"], place.batch_size)
    counts = tuple(_once(run.counts.get(place, []), copies) for run in (base, new))
    stated = stated_length(pair.base.settings["acceptance"], place.spec_tokens)
    if pair.base.settings["l2"] != COLD:  # whose wall time would hold the flush
        gaps = tuple(run.observed.get((place, StageKind.HOST_GAP.value)) for run in (base, new))
        yield _of_blocks(HOST_GAP, place, gaps[0], gaps[1], is_one)
        walls = tuple(run.observed.get((place, WALL)) for run in (base, new))
        yield _tpot(place, (walls[0], walls[1]), (counts[0], counts[1]), stated, is_one)
    if place.spec_tokens:
        yield from _acceptance(place, counts[0], counts[1], stated)
    yield _memory(place, pair.base.peak_memory_bytes, pair.new.peak_memory_bytes)


def _once(counts: Counts, copies: float) -> Counts:
    """Return counts as if each prompt was decoded once: the same rates, from as many rows as are
    independent.
    """
    return [(accepted / copies, drafted / copies) for accepted, drafted in counts]


def _is_one(place: Place, base: Evidence, new: Evidence) -> bool:
    """Return whether both sides are one measurement of the cell, which is alike in every time.

    One time alone may be alike by chance, because a device's events have ticks and a stage has one
    block.
    """
    return _times(place, base) == _times(place, new)


def _times(place: Place, run: Evidence) -> list[list[float]]:
    found = (run.observed.get((place, column)) for column in TIMES)
    return [[] if each is None else each.values.tolist() for each in found]


def is_disturbed(pair: Pair) -> bool:
    """Return whether the cell is disturbed in either run."""
    return any(cell.status is Status.DISTURBED for cell in pair.cells)


def _missing(metric: Metric, place: Place, *is_there: bool) -> Question:
    where = " and ".join(
        name for name, there in zip(("BASE", "NEW"), is_there, strict=True) if not there
    )
    return Question(metric, place.where, reason=f"not in {where}")


def _of_blocks(metric: Metric, place: Place, base: Maybe, new: Maybe, is_one: bool) -> Question:
    if base is None or new is None:
        return _missing(metric, place, base is not None, new is not None)
    if min(base.values.min(), new.values.min()) <= 0:
        return _without_ratio(metric, place, base, new, is_one)
    return _asked(metric, place, base, new, (), is_one)


def _asked(
    metric: Metric,
    place: Place,
    base: Observed,
    new: Observed,
    lengths: Sequence[Estimate],
    is_one: bool,
) -> Question:
    """Return the question of a ratio of times. With ``lengths``, the times are divided by those."""
    sides = [side.log_estimate() for side in (base, new)]
    effect = NO_EFFECT if is_one else difference(sides[1], sides[0])
    values = [side.value for side in sides]
    if lengths:
        effect = difference(effect, difference(lengths[1], lengths[0]))
        values = [value - length.value for value, length in zip(values, lengths, strict=True)]
    return Question(
        metric,
        place.where,
        exp(values[0]),
        exp(values[1]),
        effect,
        (len(base.values), len(new.values)),
        effective=(base.effective, new.effective),
    )


def _tpot(
    place: Place,
    walls: tuple[Maybe, Maybe],
    counts: tuple[Counts, Counts],
    stated: float | None,
    is_one: bool,
) -> Question:
    base, new = walls
    has_length = [_is_whole(each, place.spec_tokens) for each in counts]
    if base is None or new is None or not all(has_length):
        there = (each is not None and ok for each, ok in zip(walls, has_length, strict=True))
        return _missing(TPOT, place, *there)
    return _asked(TPOT, place, base, new, _lengths(*counts, stated), is_one)


def _lengths(base: Counts, new: Counts, stated: float | None) -> list[Estimate]:
    """Return the logarithms of the two mean acceptance lengths.

    Equal counts from the same prompts are one measurement, so they have no error. A length that the
    rule states has none either.
    """
    if stated is not None:
        return [Estimate(log(stated))] * 2
    sides = [_length(counts) for counts in (base, new)]
    return [Estimate(side.value) for side in sides] if base == new else sides


def _length(counts: Counts) -> Estimate:
    if not counts:
        return Estimate(0.0)
    return log_length_estimate([accepted for accepted, _ in counts], counts[0][1])


def _is_whole(counts: Counts, spec_tokens: int) -> bool:
    return len(counts) == spec_tokens and all(drafted for _, drafted in counts)


def _acceptance(
    place: Place, base: Counts, new: Counts, stated: float | None
) -> Iterator[Question]:
    """Yield the mean acceptance length, and the rate of each draft position."""
    there = [_is_whole(counts, place.spec_tokens) for counts in (base, new)]
    if not all(there):
        yield _missing(ACCEPTANCE, place, *there)
        return
    a, b = _lengths(base, new, stated)
    rows = (round(base[0][1]), round(new[0][1]))
    where = place.where
    yield Question(ACCEPTANCE, where, exp(a.value), exp(b.value), difference(b, a), rows)
    yield from rate_questions(where, base, new)


def rate_questions(where: LinePlace, base: Counts, new: Counts) -> Iterator[Question]:
    """Yield the acceptance rate of each draft position, from as many counts on both sides."""
    rows = round(base[0][1]), round(new[0][1])
    for position, (old, now) in enumerate(zip(base, new, strict=True), start=1):
        a, b = rate_estimate(*old), rate_estimate(*now)
        effect = NO_EFFECT if old == now else difference(b, a)
        yield Question(acceptance_rate(position), where, a.value, b.value, effect, rows)


def _without_ratio(
    metric: Metric, place: Place, base: Observed, new: Observed, is_one: bool
) -> Question:
    """Return a question about times that are not all above zero.

    A stage may take no tick of the clock. A gap may be negative if a read-back overlaps the next
    iteration.
    """
    sides = (base.values, new.values)
    medians = (float(np.median(sides[0])), float(np.median(sides[1])))
    effect = NO_EFFECT if is_one else UNKNOWN
    reason = "" if is_one else "not above zero in every block: no ratio"
    counts = (len(sides[0]), len(sides[1]))
    return Question(metric, place.where, *medians, effect, counts, reason)


def _memory(place: Place, base: int | None, new: int | None) -> Question:
    """Return the question of peak memory. It is one figure that the allocator counts, so it is
    compared as it is.
    """
    if base is None or new is None:
        return _missing(MEMORY, place, base is not None, new is not None)
    return Question(MEMORY, place.where, float(base), float(new), Estimate(log(new) - log(base)))


def capture_questions(base: Evidence, new: Evidence) -> Iterator[Question]:
    """Yield a question about the seconds to warm up, capture and instantiate, per scope and k.

    A graph is captured once in a run. So the observations are the ratios of the graphs that both
    runs have.
    """
    sides = [_capture_seconds(run.capture) for run in (base, new)]
    both = pd.concat(sides, axis=1, join="inner", keys=["base", "new"])
    for key, graphs in both.groupby(["scope", "spec_tokens"]):
        scope, k = cast(tuple[str, int], key)
        old, now = (graphs[side].to_numpy("float64") for side in ("base", "new"))
        effect = median_estimate(np.log(now / old))
        effect = NO_EFFECT if np.array_equal(old, now) else effect
        where = LinePlace(scope=scope, spec_tokens=k, place="median graph")
        rows = (len(graphs), len(graphs))
        yield Question(CAPTURE, where, float(old.sum()), float(now.sum()), effect, rows)


def _capture_seconds(capture: pd.DataFrame) -> pd.Series:
    return with_costs(capture).set_index(["scope", *GRAPH])["cost_ms"] / 1e3
