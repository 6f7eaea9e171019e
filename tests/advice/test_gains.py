"""What a gain may be wrong by where batch sizes were not measured, in numbers made by hand.

Times of both k are 1 s, but for the last size. So leaving 10 out is wrong by 0.06 at k = 0 and by
0.12 at k = 1. The other sizes are exact. A time is wrong by the root of (0.06^2 + 0.12^2) / 6. The
ratio of the two k is wrong by the root of 0.06^2 / 3.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import exp, hypot, inf, log, sqrt

import pandas as pd
import pytest

from cgbench.advice.best_k import Best
from cgbench.advice.bounded import Bounded
from cgbench.advice.cell_times import At, CellTime, Group, MeasuredTimes
from cgbench.advice.gains import Ground, Work, gain_over
from cgbench.advice.interpolation import Doubt, interpolation_doubt
from cgbench.advice.lengths import Lengths
from cgbench.advice.tiers import KTier, tiers_of
from cgbench.statistics import Estimate
from cgbench.words import Mode, Scope

CONTEXT = 1024
ERROR, RATIO_ERROR = sqrt((0.06**2 + 0.12**2) / 6), sqrt(0.06**2 / 3)
T_OF_3 = 3.1824463
"""Student's t at 95 % with three degrees of freedom, one for each size that can be left out."""

FIXED = (KTier(1, 13, 1),)
BEATEN = 0


def times_of(seconds: Mapping[tuple[int, int], float]) -> MeasuredTimes:
    """Cells without any noise, by batch size and k."""
    blocks = pd.MultiIndex.from_product([[0], range(4)], names=["process", "block"])
    cells = {
        At(CONTEXT, n, k): CellTime(
            At(CONTEXT, n, k), 0, Mode.GRAPH, n, pd.Series(each, index=blocks, dtype=float)
        )
        for (n, k), each in seconds.items()
    }
    return MeasuredTimes(Scope.ITERATION, cells, ())


def flat() -> MeasuredTimes:
    inner = {(n, k): 1.0 for n in (1, 4, 7, 10) for k in (0, 1)}
    return times_of(inner | {(13, 0): 2 * exp(0.06) - 1, (13, 1): 2 * exp(0.12) - 1})


def gain(
    sizes: Collection[int],
    tiers: tuple[KTier, ...] = FIXED,
    length: float = 1.0,
    times: MeasuredTimes | None = None,
) -> Bounded:
    """The gain over k = 0, each of ``sizes`` alike, where k = 1 emits ``length`` tokens."""
    work = Work(dict.fromkeys(sizes, 1 / len(sizes)), "by hand")
    lengths = Lengths("by hand", {1: Estimate(log(length))})
    ground = Ground(flat() if times is None else times, lengths, CONTEXT, work)
    return gain_over(BEATEN, tiers, ground, 0.95).speedup


def error_of(found: Bounded) -> float:
    assert log(found.value / found.low) == pytest.approx(log(found.high / found.value))
    return log(found.high / found.value) / T_OF_3


def test_left_out_sizes_tell_the_error_of_a_time_and_of_a_ratio() -> None:
    doubt = interpolation_doubt(flat(), CONTEXT)
    assert doubt.error == pytest.approx(ERROR)
    assert doubt.ratio_error == pytest.approx(RATIO_ERROR)
    assert doubt.num_sizes == 3


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([4, 7], 0.0, id="no error where both k were measured"),
        pytest.param([2], RATIO_ERROR, id="both k of a size share a part of their errors"),
        pytest.param([3], RATIO_ERROR, id="as wrong right beside a measured size"),
        pytest.param([8], RATIO_ERROR, id="as wrong in each gap"),
        pytest.param([2, 4], RATIO_ERROR / 2, id="half of the time was measured"),
        pytest.param([2, 3], RATIO_ERROR, id="sizes of one gap are wrong together"),
        pytest.param([2, 5], RATIO_ERROR / sqrt(2), id="gaps are independent"),
        pytest.param([2, 3, 5, 6], RATIO_ERROR / sqrt(2), id="two gaps of two sizes"),
        pytest.param([2, 3, 5], RATIO_ERROR * hypot(2 / 3, 1 / 3), id="gaps weigh by their time"),
    ],
)
def test_a_gain_is_wrong_by_the_gaps_that_its_time_is_in(sizes: list[int], expected: float) -> None:
    found = gain(sizes)
    assert found.value == pytest.approx(1)
    assert error_of(found) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_a_size_of_one_k_counts_by_how_much_more_of_one_side_it_is() -> None:
    """A token takes 0.5 s at 4 and 1 s at 5, which is 2/3 of the time. It is 1/2 at k = 0."""
    tiers = KTier(1, 4, 1), KTier(5, 13, 0)
    found = gain([4, 5], tiers, length=2)
    assert found.value == pytest.approx(4 / 3)
    assert error_of(found) == pytest.approx(ERROR / 6)


def test_a_time_that_one_side_alone_interpolates_has_an_error_of_its_own() -> None:
    """At 7 only k = 0 was measured, so k = 1 is a line from 4 to 10."""
    times = flat()
    some = replace(
        times, cells={at: cell for at, cell in times.cells.items() if at != At(CONTEXT, 7, 1)}
    )
    doubt = interpolation_doubt(some, CONTEXT)
    found = log(gain([7], times=some).high)
    assert found == pytest.approx(doubt.of_time.half_width(0.95))


def test_gaps_of_two_k_that_overlap_are_one() -> None:
    """6 lies between 4 and 7 at k = 0, and between 4 and 10 at k = 1, as 8 does."""
    times = flat()
    some = replace(
        times, cells={at: cell for at, cell in times.cells.items() if at != At(CONTEXT, 7, 1)}
    )
    found = log(gain([6, 8], times=some).high)
    assert found == pytest.approx(interpolation_doubt(some, CONTEXT).of_ratio.half_width(0.95))


def test_what_both_sides_carry_is_wrong_by_the_ratio_and_the_rest_by_a_time() -> None:
    doubt = Doubt(0.1, 0.03, 5)
    assert doubt.apart(0.5, 0.5) == pytest.approx(0.5 * 0.03)
    assert doubt.apart(0.8, 0.2) == pytest.approx(hypot(0.6 * 0.1, 0.4 * 0.03))
    assert doubt.apart(0.2, 0.8) == doubt.apart(0.8, 0.2)
    assert doubt.apart(0.5, 0.0) == pytest.approx(0.05)


def test_nothing_is_known_of_a_gap_if_no_size_can_be_left_out() -> None:
    times = times_of({(n, k): 1.0 for n in (1, 4) for k in (0, 1)})
    assert not gain([2], times=times).is_known
    assert gain([1, 4], times=times).is_known
    assert Doubt(inf, inf, 0).apart(0.0, 0.0) == 0


def test_two_k_are_taken_for_opposite_if_no_size_was_left_out_of_both() -> None:
    """Leaving 4 out tells of k = 1 alone, because k = 0 was measured at its ends."""
    single = times_of({(1, 0): 1, (7, 0): 1, (1, 1): 1, (4, 1): exp(-0.1), (7, 1): 1})
    doubt = interpolation_doubt(single, CONTEXT)
    assert (doubt.error, doubt.ratio_error) == (pytest.approx(0.1), pytest.approx(0.2))


def test_a_schedule_switches_where_the_ratio_is_beyond_its_own_error() -> None:
    """Both k are wrong together at 2, so their ratio is known better than the time of either."""
    noise = exp(0.07)
    seconds = {(n, 0): each for n, each in ((1, 1.0), (2, noise), (3, 1.0), (4, noise), (20, 1.8))}
    times = times_of(seconds | {(n, 1): noise if n in (2, 4) else 1.0 for n in (1, 2, 3, 4, 20)})
    doubt = interpolation_doubt(times, CONTEXT)
    margin = doubt.of_ratio.half_width(0.95)
    assert margin < 0.5 * doubt.of_time.half_width(0.95)
    bests = [Best(Group(CONTEXT, n), k, (), None) for n, k in ((4, 0), (20, 1))]
    tiers = tiers_of(bests, times, Lengths("by hand", {1: Estimate(0.0)}), 0.95)

    def ahead(n: int) -> float:
        share = (n - 4) / 16
        return log((noise + share * (1.8 - noise)) / (noise + share * (1 - noise)))

    first = next(n for n in range(5, 20) if ahead(n) > margin)
    assert [(tier.first, tier.last, tier.k) for tier in tiers] == [
        (1, first - 1, 0),
        (first, 20, 1),
    ]
    assert 5 < first < 20
