"""The error of a median over blocks: against counting, and how often the interval is wrong."""

import tracemalloc
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy.special import betainc

from cgbench.statistics import (
    CONFIDENCE,
    Estimate,
    Floats,
    blocks_estimate,
    median_estimate,
    processes_estimate,
    repetition,
)
from tests.support.references import markdown_table

# Blocks, what the documentation calls them, their correlation.
DOCUMENTED = (
    (8, "independent", 0),
    (8, "r = 0.3", 0.3),
    (20, "r = 0.3", 0.3),
    (8, "r = 0.6", 0.6),
    (40, "r = 0.6", 0.6),
)


def autoregressive(rho: float, n: int, num_runs: int = 1000) -> Floats:
    """``[num_runs, n]``: stationary AR(1) of variance 1 around 0."""
    rng = np.random.default_rng(round(100 * rho) + n)
    values = rng.normal(size=(num_runs, n))
    for i in range(1, n):
        values[:, i] = rho * values[:, i - 1] + sqrt(1 - rho**2) * values[:, i]
    return values


def coverage(estimates: list[Estimate]) -> float:
    """How many of the intervals hold the true value, 0."""
    return float(np.mean([abs(e.value) <= e.half_width(CONFIDENCE) for e in estimates]))


@pytest.mark.parametrize(
    ("rho", "n", "at_least"),
    [(0, 8, 0.95), (0, 20, 0.95), (0.3, 8, 0.92), (0.3, 20, 0.92), (0.6, 8, 0.83), (0.6, 40, 0.91)],
)
def test_coverage_over_correlated_blocks(rho: float, n: int, at_least: float) -> None:
    assert coverage([*map(blocks_estimate, autoregressive(rho, n))]) >= at_least


def test_coverage_is_what_the_documentation_states() -> None:
    text = (Path(__file__).parents[1] / "docs" / "measurement.md").read_text()
    stated = markdown_table(text, 1)
    assert [*stated.columns] == ["blocks", *(f"{n}, {what}" for n, what, _ in DOCUMENTED)]
    for estimate, row in zip((blocks_estimate, median_estimate), stated.values, strict=True):
        found = [coverage([*map(estimate, autoregressive(rho, n))]) for n, _, rho in DOCUMENTED]
        assert found == pytest.approx([percent / 100 for percent in row[1:]], abs=0.01)


@pytest.mark.parametrize(("rho", "n"), [(0.3, 20), (0.6, 8), (0.6, 40)])
def test_correlation_ignored_would_cover_less(rho: float, n: int) -> None:
    runs = autoregressive(rho, n)
    ignored, heeded = (
        coverage([*map(estimate, runs)]) for estimate in (median_estimate, blocks_estimate)
    )
    assert ignored < heeded - 0.04


def test_independent_blocks_pay_little_for_it() -> None:
    runs = autoregressive(0, 20)
    widths = [np.mean([f(run).error for run in runs]) for f in (blocks_estimate, median_estimate)]
    assert 1 < widths[0] / widths[1] < 1.15


def test_repetition_is_that_of_an_autoregression() -> None:
    """1000 blocks of correlation 0.6 tell as much as 250 independent ones."""
    found = [repetition(run) for run in autoregressive(0.6, 1000, num_runs=20)]
    assert np.mean(found) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [3.0, 3.0, 3.0], [1.0, 2.0, 1.0, 2.0, 1.0]])
def test_few_equal_or_alternating_blocks_repeat_nothing(values: list[float]) -> None:
    assert repetition(np.array(values)) == 1


@pytest.mark.parametrize("n", [2, 3, 5])
def test_coverage_over_processes(n: int) -> None:
    runs = np.random.default_rng(n).normal(size=(4000, n))
    assert coverage([*map(processes_estimate, runs)]) == pytest.approx(CONFIDENCE, abs=0.015)


def test_one_process_has_no_interval() -> None:
    assert processes_estimate(np.array([1.0])) == Estimate(1.0, np.inf, 1)


@pytest.mark.parametrize("n", [9, 101, 401])
def test_the_middle_of_many_blocks_tells_it_all(n: int) -> None:
    """Maritz and Jarrett's sum over all n order statistics."""
    values = np.sort(np.random.default_rng(n).lognormal(size=n))
    weights = np.diff(betainc((n + 1) // 2, (n + 1) // 2, np.arange(n + 1) / n))
    mean = weights @ values
    assert median_estimate(values).error == pytest.approx(sqrt(weights @ (values - mean) ** 2))


def test_thousands_of_blocks_take_little_memory() -> None:
    """A run of many minutes asks after every round, each time of another number."""
    tracemalloc.start()
    median_estimate(np.linspace(1, 2, 4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
