"""Runs merged to one: the worst status counts, and what differs between processes is evidence."""

from dataclasses import replace
from math import isnan, log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cgbench.gate.comparison import Rules, compare
from cgbench.rundir.merge import merge_runs
from cgbench.rundir.schema import Cell
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.thin import make_thin
from cgbench.statistics import CONFIDENCE, processes_estimate
from cgbench.tables.latency import latency_markdown
from cgbench.words import Scope, Status, Verdict
from tests.support.runs import Made, only

PLACE = {"scope": "iteration", "spec_tokens": 2, "batch_size": 8}
QUERY = "scope == 'iteration' and spec_tokens == 2 and batch_size == 8"


def merged(path: Path, *made: Made) -> RunDirectory:
    parts = [each.run(path / str(number)) for number, each in enumerate(made)]
    out = path / "merged"
    out.mkdir(parents=True)
    return merge_runs(parts, out, latency_markdown)


def test_the_processes_are_the_unit_of_evidence(tmp_path: Path) -> None:
    """Three processes 0, 3 and 6 % apart, each steady: blocks would know it to 0.1 %."""
    made = [Made(seed=seed, slower=1 + 0.03 * seed, noise=1e-5) for seed in range(3)]
    row = merged(tmp_path, *made).latency().query(QUERY).iloc[0]
    expected = processes_estimate(np.log([1.0, 1.03, 1.06])).half_width(CONFIDENCE)
    assert row["half_width_frac"] == pytest.approx(expected, rel=0.01)
    assert row["blocks"] == 30 and row["iterations"] == 150
    assert row["iteration_p50_ms"] == pytest.approx(2.06, rel=1e-3)


def test_a_cell_that_one_process_of_two_timed_has_no_interval(tmp_path: Path) -> None:
    """The other one's blocks were all discarded. ``compare`` counts processes: one is too few."""
    parts = [Made(seed=seed).write(tmp_path / str(seed)) for seed in range(2)]
    file = parts[1] / "samples.parquet"
    samples = pd.read_parquet(file)
    samples[~samples.eval(QUERY)].to_parquet(file, index=False)
    out = tmp_path / "merged"
    out.mkdir()
    run = merge_runs([RunDirectory.open(part) for part in parts], out, latency_markdown)
    rows = run.latency()
    assert isnan(rows.query(QUERY)["half_width_frac"].iloc[0])
    assert rows.query(f"not ({QUERY})")["half_width_frac"].notna().all()
    (line,) = [
        line
        for line in compare(run.path, Made(seed=2).write(tmp_path / "new"), Rules()).lines
        if line.what == "iteration latency"
        and {name: getattr(line, name) for name in PLACE} == PLACE
    ]
    assert (line.verdict, line.base_blocks) == (Verdict.INCONCLUSIVE, 1)


def processes(path: Path, seed: int, slower: float = 1.0) -> Path:
    """Five processes that lie 1 % apart by chance, whatever their blocks say."""
    shifts = np.random.default_rng(seed).normal(size=5) * 0.01
    made = [Made(seed=i + 10 * seed, slower=slower * np.exp(s)) for i, s in enumerate(shifts)]
    return merged(path, *made).path


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged run that no test changes."""
    return processes(tmp_path_factory.mktemp("apart"), 1)


def verdict(base: Path, new: Path) -> tuple[Verdict, float, float]:
    lines = compare(base, new, Rules()).lines
    (line,) = [
        line
        for line in lines
        if line.what == "iteration latency"
        and {name: getattr(line, name) for name in PLACE} == PLACE
    ]
    assert line.low is not None and line.high is not None
    assert (line.base_blocks, line.new_blocks) == (5, 5)
    return line.verdict, line.low, line.high


def test_what_differs_between_processes_enters_the_interval(apart: Path, tmp_path: Path) -> None:
    found, low, high = verdict(apart, processes(tmp_path, 2))
    assert found is Verdict.INCONCLUSIVE and low < 0 < high and log(1 + high) > 0.02


def test_a_slow_down_larger_than_processes_differ_is_regressed(apart: Path, tmp_path: Path) -> None:
    assert verdict(apart, processes(tmp_path, 2, 1.15))[0] is Verdict.REGRESSED


@pytest.mark.parametrize("status", [Status.AUDIT_FAILED, Status.OOM])
def test_a_cell_that_failed_once_has_no_numbers(tmp_path: Path, status: Status) -> None:
    changes = {"status": status, "tokens_sha256": None, "peak_memory_bytes": None}
    changes |= {"num_drafted": 0, "num_accepted_per_pos": (0, 0)}
    run = merged(tmp_path, Made(), Made(seed=1, edit=only(changes)))
    row = run.latency().query(QUERY).iloc[0]
    assert row["status"] == status
    numbers = ["iteration_p50_ms", "peak_memory_bytes", "mean_acceptance_length", "blocks"]
    assert row[numbers].isna().all()
    assert run.samples().query(QUERY).empty and not run.acceptance().query(QUERY)["drafted"].any()


def test_a_cell_disturbed_once_keeps_its_numbers_and_its_doubt(tmp_path: Path) -> None:
    edit = only({"status": Status.DISTURBED, "discarded_blocks": 3})
    row = merged(tmp_path, Made(), Made(seed=1, edit=edit)).latency().query(QUERY).iloc[0]
    assert (row["status"], row["discarded_blocks"]) == ("disturbed", 3)
    assert row["iteration_p50_ms"] > 0


def test_cells_keep_the_order_of_the_first_run(tmp_path: Path) -> None:
    edit = only({"status": Status.DISTURBED})
    run = merged(tmp_path, Made(), Made(seed=1, edit=edit))
    names = ["scope", "spec_tokens", "batch_size"]
    first = Made().run(tmp_path).latency()
    assert run.latency()[names].equals(first[names])


def test_tokens_that_differ_between_processes_are_told(tmp_path: Path) -> None:
    other = only({"tokens_sha256": "other"})
    warnings = merged(tmp_path, Made(), Made(seed=1, edit=other)).record.warnings
    assert warnings == ["tokens differ between processes: iteration k=2, batch size 8"]


def test_tokens_and_acceptance_are_the_first_ones_whatever_became_of_another(
    tmp_path: Path,
) -> None:
    """The row says what acceptance.csv and tokens.jsonl hold, and TPOT rests on it."""
    other = {"tokens_sha256": "other", "num_accepted_per_pos": (1, 0), "status": Status.DISTURBED}
    run = merged(tmp_path, Made(), Made(seed=1, edit=only(other)))
    row = run.latency().query(QUERY).iloc[0]
    first = Made().run(tmp_path).latency().query(QUERY).iloc[0]
    names = ["tokens_sha256", "mean_acceptance_length", "acceptance_rate_per_pos"]
    assert row["status"] == "disturbed" and row[names].equals(first[names])
    counts = run.acceptance().query(QUERY)
    length = 1 + counts["accepted"].sum() / counts["drafted"].iloc[0]
    assert row["mean_acceptance_length"] == pytest.approx(length, rel=1e-5)


def test_most_memory_of_all(tmp_path: Path) -> None:
    def more(cell: Cell) -> Cell:
        return replace(cell, peak_memory_bytes=9999) if cell.scope is Scope.PHASE else cell

    latency = merged(tmp_path, Made(), Made(seed=1, edit=more)).latency()
    assert set(latency.query("scope == 'phase'")["peak_memory_bytes"]) == {9999}
    assert set(latency.query("scope == 'eager'")["peak_memory_bytes"]) == {4096}


def test_another_l2_is_another_cell(tmp_path: Path) -> None:
    def cold(cell: Cell) -> Cell:
        return replace(cell, l2="cold")

    paths = [Made().write(tmp_path / "warm"), Made(edit=cold).write(tmp_path / "cold")]
    again = compare(paths[1], paths[1], Rules())
    assert {line.verdict for line in again.lines} == {Verdict.SAME}
    assert not {"TPOT", "host gap"} & {line.what for line in again.lines}
    (line,) = compare(paths[0], paths[1], Rules()).lines
    assert line.verdict is Verdict.NOT_COMPARABLE and line.reason == "l2: warm in BASE, cold in NEW"


def test_a_merged_run_made_thin_gives_the_same_lines(apart: Path, tmp_path: Path) -> None:
    run = merged(tmp_path / "new", *(Made(seed=seed) for seed in range(3)))
    full = compare(apart, run.path, Rules()).lines
    make_thin(run)
    assert set(RunDirectory.open(run.path).samples()["process"]) == {0, 1, 2}
    assert compare(apart, run.path, Rules()).lines == full


def test_what_was_resumed_is_told_of_the_merged_run(tmp_path: Path) -> None:
    parts = [RunDirectory.open(Made().write(tmp_path / str(number))) for number in range(2)]
    parts[1].record.resumed.append({"utc": "then", "kept_batch_sizes": [1]})
    (tmp_path / "merged").mkdir()
    gone_on = {"utc": "now", "kept_processes": [0]}
    run = merge_runs(parts, tmp_path / "merged", latency_markdown, resumed=[gone_on])
    of_part = {"utc": "then", "kept_batch_sizes": [1], "process": 1}
    assert run.record.resumed == [gone_on, of_part]


def test_products_padded_in_any_process_are_told_of_the_merged_run(tmp_path: Path) -> None:
    """Each process chooses by timing, so the choices may differ."""
    parts = [RunDirectory.open(Made().write(tmp_path / str(number))) for number in range(3)]
    one, other = "240 x 32 by 48 as 256 rows", "216 x 32 by 48 as 256 rows"
    parts[0].record.add_padded_products([one])
    parts[2].record.add_padded_products([one, other])
    (tmp_path / "merged").mkdir()
    run = merge_runs(parts, tmp_path / "merged", latency_markdown)
    assert RunDirectory.open(run.path).record.padded_products == [one, other]
    assert parts[0].record.padded_products == [one]
    line = f"- products with rows added, where faster: {one}, {other}\n"
    assert line in (run.path / "latency.md").read_text()
