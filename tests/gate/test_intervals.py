"""Intervals: the closed form against counting, and how often they are wrong."""

from itertools import product
from math import exp, log, log1p

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgbench.gate.intervals import interval, rate_estimate
from cgbench.gate.verdicts import ITERATION, Interval, decide
from cgbench.statistics import (
    Estimate,
    Floats,
    adjusted_level,
    blocks_estimate,
    difference,
    log_length_estimate,
    median_estimate,
)
from cgbench.words import Verdict

NUM_BLOCKS = 10
THRESHOLD = log1p(0.02)


def log_blocks(rng: np.random.Generator, num_runs: int, noise: float = 0.003) -> Floats:
    """``[num_runs, NUM_BLOCKS]``: logs of medians of 20 iterations each, which follow an AR(1) of
    0.8 inside a block; ``noise`` is an iteration's, relative, with one in 50 a tenth longer."""
    steps = rng.normal(size=(num_runs, NUM_BLOCKS, 20)) * noise
    for i in range(1, 20):
        steps[..., i] = 0.8 * steps[..., i - 1] + 0.6 * steps[..., i]
    steps += (rng.random(steps.shape) < 0.02) * 0.1
    return np.median(steps, axis=-1)


def effect(base: Floats, new: Floats, level: float) -> Interval:
    return interval(difference(blocks_estimate(new), blocks_estimate(base)), level)


def verdicts(effect_size: float, num_runs: int, num_cells: int = 1) -> list[Verdict]:
    """NEW slower by ``effect_size``, each run a family of ``num_cells`` at 95 % together."""
    rng = np.random.default_rng(7)
    level = adjusted_level(0.95, num_cells)
    base, new = (log_blocks(rng, num_runs * num_cells) for _ in range(2))
    return [
        decide(effect(a, b + log1p(effect_size), level), THRESHOLD, ITERATION)
        for a, b in zip(base, new, strict=True)
    ]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_bootstrap_error_is_that_of_all_resamples(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    medians = [np.median(values[list(chosen)]) for chosen in product(range(n), repeat=n)]
    assert median_estimate(values).error == pytest.approx(np.std(medians))


def test_bootstrap_error_of_many_blocks_does_not_overflow() -> None:
    values = np.random.default_rng(0).normal(size=3000)
    # The asymptotic error of a normal sample's median.
    assert median_estimate(values).error == pytest.approx((np.pi / 2 / 3000) ** 0.5, rel=0.15)


def test_one_block_has_no_interval() -> None:
    found = effect(np.array([1.0]), np.array([2.0]), 0.95)
    assert (found.estimate, found.low, found.high) == (1, -np.inf, np.inf)


def test_blocks_that_all_agree_leave_no_doubt() -> None:
    assert effect(np.full(3, 1.0), np.full(3, 1.5), 0.95) == Interval(0.5, 0.5, 0.5)


def test_no_effect_is_seldom_taken_for_one() -> None:
    """Intervals that exclude zero in any of a family of 24 cells: at most 5 % of 200 families."""
    rng = np.random.default_rng(3)
    level = adjusted_level(0.95, 24)
    base, new = (log_blocks(rng, 200 * 24) for _ in range(2))
    found = [effect(a, b, level) for a, b in zip(base, new, strict=True)]
    is_wrong = np.array([each.low > 0 or each.high < 0 for each in found]).reshape(200, 24)
    assert is_wrong.any(axis=1).mean() <= 0.05


def test_intervals_hold_the_true_effect() -> None:
    rng = np.random.default_rng(5)
    base, new = (log_blocks(rng, 2000) for _ in range(2))
    found = [effect(a, b + 0.03, 0.95) for a, b in zip(base, new, strict=True)]
    assert np.mean([each.low <= 0.03 <= each.high for each in found]) >= 0.95


@pytest.mark.parametrize(
    ("size", "expected", "at_least"),
    [
        (0.0, Verdict.SAME, 0.99),
        (0.01, Verdict.SAME, 0.95),
        (0.03, Verdict.REGRESSED, 0.99),
        (0.05, Verdict.REGRESSED, 0.99),
        (-0.03, Verdict.FASTER, 0.99),
    ],
)
def test_power(size: float, expected: Verdict, at_least: float) -> None:
    found = verdicts(size, num_runs=50, num_cells=24)
    assert found.count(expected) >= at_least * len(found)


def test_no_regression_is_seen_in_200_runs_repeated() -> None:
    assert Verdict.REGRESSED not in verdicts(0.0, num_runs=200, num_cells=24)


def test_a_drift_through_the_blocks_is_not_called_same() -> None:
    drift = np.linspace(0, 0.10, NUM_BLOCKS)
    found = effect(log_blocks(np.random.default_rng(1), 1)[0], drift - np.median(drift), 0.95)
    assert decide(found, THRESHOLD, ITERATION) is Verdict.INCONCLUSIVE


logs = st.floats(-5, 5, allow_nan=False)
blocks = st.lists(logs, min_size=1, max_size=12).map(np.array)


@given(blocks, blocks, st.sampled_from([0.9, 0.95, 0.9999]))
def test_swapping_base_and_new_mirrors_the_answer(base: Floats, new: Floats, level: float) -> None:
    forth, back = effect(base, new, level), effect(new, base, level)
    assert forth == -back
    mirror = {Verdict.REGRESSED: Verdict.FASTER, Verdict.FASTER: Verdict.REGRESSED}
    verdict = decide(forth, THRESHOLD, ITERATION)
    assert decide(back, THRESHOLD, ITERATION) is mirror.get(verdict, verdict)


@given(blocks, blocks)
def test_a_higher_level_is_a_wider_interval(base: Floats, new: Floats) -> None:
    narrow, wide = (effect(base, new, level) for level in (0.9, 0.999))
    assert wide.low <= narrow.low <= narrow.estimate <= narrow.high <= wide.high


def test_length_and_its_error_are_those_of_the_rows() -> None:
    """Accepted 0, 1 and 2 of 2 drafts in 3000, 3000 and 4000 rows."""
    rows = np.repeat([0, 1, 2], [3000, 3000, 4000]) + 1
    found = log_length_estimate([7000, 4000], 10000)
    assert exp(found.value) == pytest.approx(rows.mean())
    assert found.error == pytest.approx(rows.std() / 100 / rows.mean(), rel=1e-3)


@pytest.mark.parametrize("accepted", [(0, 0), (7, 7)])
def test_few_rows_at_the_rim_are_no_certainty(accepted: tuple[int, int]) -> None:
    assert log_length_estimate(accepted, 7).error > 0.05
    assert rate_estimate(accepted[0], 7).error > 0.05


def test_welch() -> None:
    """Equal errors add up in quadrature and share their degrees of freedom."""
    found = difference(Estimate(3, 0.3, 9), Estimate(1, 0.4, 9))
    assert (found.value, found.error) == (2, pytest.approx(0.5))
    assert found.freedom == pytest.approx(0.5**4 / (0.3**4 + 0.4**4) * 9)


def test_an_exact_side_adds_nothing() -> None:
    assert difference(Estimate(log(2), 0.1, 9), Estimate(0.0)) == Estimate(log(2), 0.1, 9)


def test_level_is_shared_by_all_intervals() -> None:
    assert adjusted_level(0.95, 0) == adjusted_level(0.95, 1) == pytest.approx(0.95)
    assert adjusted_level(0.95, 10) == pytest.approx(0.995)
