"""Every recorded run: its numbers agree with each other, and none is more than it can be."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from cgbench.advice.advise import Question, advise
from cgbench.advice.bounded import Bounded
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import with_timings
from cgbench.words import Mode, Status

RESULTS = Path(__file__).parents[2] / "results"
RUNS = sorted(file.parent for file in RESULTS.rglob("latency.csv"))

COMPUTED = ("tpot_ms", "output_tok_per_s", "iteration_p50_ms", "speedup_vs_no_spec")
PIECES = ["verify_p50_ms", "accept_p50_ms", "draft_p50_ms", "commit_p50_ms"]

STAGES_OVER = 0.05
"""Stages are of another pass, whose events cost a little."""
EXPERTS_OFF = 0.10
"""Experts are counted in one block, at batch 1 in a handful of draws."""

every_run = pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(RESULTS)))


@cache
def opened(path: Path) -> RunDirectory:
    return RunDirectory.open(path)


def in_graphs(path: Path) -> pd.DataFrame:
    latency = opened(path).tables.latency
    return latency[(latency["mode"] == Mode.GRAPH.value) & (latency["status"] == Status.OK.value)]


@every_run
def test_statistics_are_those_of_the_samples(path: Path) -> None:
    latency = opened(path).latency()
    # A thin run has a row a block, of which no mean can be taken again.
    if not opened(path).record.thin:
        again = with_timings(latency.copy(), opened(path).samples())
        for name in COMPUTED:
            pd.testing.assert_series_equal(again[name], latency[name], rtol=1e-4)
    rate = latency["batch_size"] * 1e3 / latency["tpot_ms"]
    pd.testing.assert_series_equal(
        rate.dropna(), latency["output_tok_per_s"].dropna(), rtol=1e-4, check_names=False
    )


@every_run
def test_a_captured_iteration_takes_on_the_mean_what_it_takes_in_the_median(path: Path) -> None:
    """The one makes tokens a second, and the other stands in every table."""
    rows = in_graphs(path)
    mean_ms = (rows["tpot_ms"] * rows["mean_acceptance_length"]).dropna()
    ratio = mean_ms / rows["iteration_p50_ms"].loc[mean_ms.index]
    assert ratio.between(0.98, 1.06).all(), ratio.tolist()


@every_run
def test_stages_are_not_more_than_their_iteration(path: Path) -> None:
    rows = in_graphs(path)
    whole = rows["iteration_p50_ms"]
    assert (rows[PIECES].sum(axis=1) <= (1 + STAGES_OVER) * whole).all()


@every_run
def test_an_account_is_its_rows_floor_and_reads_no_faster_than_the_device(path: Path) -> None:
    record = opened(path).record
    rows = opened(path).tables.latency.set_index(["scope", "spec_tokens", "batch_size"])
    for account in record.accounts:
        row = rows.loc[(account.scope.value, account.spec_tokens, account.batch_size)]
        seconds = sum(line.seconds for line in account.lines)
        assert seconds * 1e3 == pytest.approx(row["floor_ms"], rel=1e-4)
        limits = record.limits
        assert limits is not None
        for line in account.lines:
            assert line.seconds >= line.num_bytes / limits.read_bytes_per_s * (1 - 1e-9)
        if row["status"] == Status.OK.value:
            taken_s = row["iteration_p50_ms"] / 1e3 * (1 + limits.read_spread_frac)
            num_bytes = sum(line.num_bytes for line in account.lines)
            assert num_bytes <= limits.read_bytes_per_s * taken_s


@every_run
def test_experts_are_those_that_even_draws_reach(path: Path) -> None:
    latency = opened(path).tables.latency
    if not (latency["routing"] == "balanced").all():
        return
    for account in opened(path).record.accounts:
        for line in account.lines:
            if line.experts_read is not None:
                assert line.experts_read == pytest.approx(line.experts_expected, rel=EXPERTS_OFF)


@every_run
def test_every_interval_of_its_advice_holds_its_estimate(path: Path) -> None:
    latency = opened(path).tables.latency
    most = latency["spec_tokens"].max()
    if not most or opened(path).record.thin:
        return
    rates = ",".join(str(round(0.9**step, 3)) for step in range(1, most + 1))
    for acceptance in (None, f"synthetic:{rates}"):
        found = advise([opened(path)], Question(acceptance=acceptance))
        bounds = [*bounded_in(found)]
        assert bounds or not found.break_evens
        assert all(each.low <= each.value <= each.high for each in bounds)
        for each in found.break_evens:
            assert each.known is None or each.known.value <= each.at.spec_tokens + 1


def bounded_in(value: object) -> Iterator[Bounded]:
    if isinstance(value, Bounded):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from bounded_in(each)
    elif is_dataclass(value):
        for field in fields(value):
            if field.name != "times":
                yield from bounded_in(getattr(value, field.name))
