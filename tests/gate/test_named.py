"""Everything that can be wrong with a run, made from runs that an H200 really recorded: each has a
name of its own, and none is ``same``."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cgbench.gate.comparison import Rules, compare
from cgbench.gate.verdicts import Line
from cgbench.words import Verdict
from tests.support.command import cgbench

RESULTS = Path(__file__).parents[2] / "results"
H200 = RESULTS / "h200" / "default-k3"
BASELINE = RESULTS / "baselines" / "h200" / "default-k3"
"""The run above, kept thin."""

CELL = {"scope": "iteration", "spec_tokens": 3, "batch_size": 4}
TIMES = {"iteration latency", "TPOT"}

Spoil = Callable[[Path], None]


def edit_record(**changes: Any) -> Spoil:
    def spoil(path: Path) -> None:
        file = path / "run.json"
        raw = json.loads(file.read_text())
        for name, value in changes.items():
            raw[name] = raw[name] | value if isinstance(value, dict) else value
        file.write_text(json.dumps(raw))

    return spoil


def edit_latency(edit: Callable[[pd.DataFrame, pd.Series], pd.DataFrame]) -> Spoil:
    """``edit`` gets the table as text, and which row is ``CELL``."""

    def spoil(path: Path) -> None:
        file = path / "latency.csv"
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        is_cell = pd.Series(True, index=frame.index)
        for name, value in CELL.items():
            is_cell &= frame[name] == str(value)
        assert is_cell.sum() == 1
        edit(frame, is_cell).to_csv(file, index=False)

    return spoil


def drop_cell(path: Path) -> None:
    """As if ``CELL`` had never been measured."""
    for name in ("latency.csv", "acceptance.csv", "blocks.csv"):
        frame = pd.read_csv(path / name, dtype=str, keep_default_na=False)
        frame[~are_cell(frame)].to_csv(path / name, index=False)
    samples = pd.read_parquet(path / "samples.parquet")
    samples[~are_cell(samples)].to_parquet(path / "samples.parquet", index=False)


def are_cell(frame: pd.DataFrame) -> pd.Series:
    return (frame[list(CELL)].astype(str) == pd.Series(CELL).astype(str)).all(axis=1)


def drift(share: float) -> Spoil:
    """Clocks that fall by ``share`` from the first block to the last, seen by no telemetry."""

    def spoil(path: Path) -> None:
        file = path / "samples.parquet"
        samples = pd.read_parquet(file)
        slower = 1 + share * samples["block"] / samples["block"].max()
        for name in ("gpu_s", "wall_s"):
            samples[name] *= slower
        samples.to_parquet(file, index=False)

    return spoil


def truncate(name: str) -> Spoil:
    def spoil(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) * 3 // 4])

    return spoil


def spoilt(tmp_path: Path, spoil: Spoil) -> Path:
    shutil.copytree(H200, tmp_path / "run")
    spoil(tmp_path / "run")
    return tmp_path / "run"


def of_cell(lines: tuple[Line, ...]) -> list[Line]:
    return [
        line for line in lines if all(getattr(line, name) == value for name, value in CELL.items())
    ]


def test_the_run_itself_is_the_same_as_itself() -> None:
    found = compare(H200, H200, Rules())
    assert {line.verdict for line in found.lines} == {Verdict.SAME} and found.exit_code == 0


def again(factor: float) -> Spoil:
    """As if measured again: every block is off by a thousandth or so, and all by ``factor``."""

    def spoil(path: Path) -> None:
        file = path / "samples.parquet"
        samples = pd.read_parquet(file)
        blocks = samples.groupby(
            ["scope", "spec_tokens", "batch_size", "process", "block"]
        ).ngroup()
        noise = np.random.default_rng(1).normal(0.0, 0.001, blocks.max() + 1)
        for name in ("gpu_s", "wall_s"):
            samples[name] *= factor * np.exp(noise[blocks])
        samples.to_parquet(file, index=False)

    return spoil


@pytest.mark.parametrize(
    ("factor", "verdict", "code"),
    [
        (1.03, Verdict.REGRESSED, 1),
        (1.003, Verdict.SAME, 0),
        (1 / 1.003, Verdict.SAME, 0),
        (1 / 1.03, Verdict.FASTER, 0),
    ],
)
@pytest.mark.parametrize("base", [H200, BASELINE], ids=["full", "thin"])
def test_three_per_cent_is_found_and_a_tenth_of_it_is_not(
    base: Path, factor: float, verdict: Verdict, code: int, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "run")
    again(factor)(tmp_path / "run")
    found = compare(base, tmp_path / "run", Rules())
    times = [line for line in found.gated if line.what in TIMES]
    assert len(times) == 32 and {line.verdict for line in times} == {verdict}
    assert {line.verdict for line in found.gated if line.what not in TIMES} == {Verdict.SAME}
    assert found.exit_code == code
    for line in times:
        assert line.low < line.effect < line.high
        assert line.effect == pytest.approx(factor - 1, abs=0.003)


@pytest.mark.parametrize(("share", "side"), [(0.03, "BASE"), (0.03, "NEW"), (0.12, "NEW")])
def test_clocks_that_drift(tmp_path: Path, share: float, side: str) -> None:
    run = spoilt(tmp_path, drift(share))
    found = compare(*((H200, run) if side == "NEW" else (run, H200)), Rules())
    lines = [line for line in found.gated if line.what in TIMES]
    assert len(lines) == 32 and {line.verdict for line in lines} == {Verdict.INCONCLUSIVE}
    # One cell is too noisy for a drift of 3 % to show as one.
    reason = re.compile(rf"times drift in {side}: \d+ blocks count as \d")
    named = [line for line in lines if reason.search(line.reason)]
    assert len(named) >= 31 and found.exit_code == 4


def test_a_clock_that_telemetry_saw_fall(tmp_path: Path) -> None:
    """Another clock for the whole run: no block is another's outlier, so it is said."""

    def add(path: Path, median: float) -> Path:
        spread = {"min": median, "median": median, "max": median}
        file = path / "run.json"
        telemetry = {"telemetry": {"sm_clock_mhz": spread}}
        file.write_text(json.dumps(json.loads(file.read_text()) | telemetry))
        return path

    base, new = (add(spoilt(tmp_path / str(mhz), lambda _: None), mhz) for mhz in (1980.0, 1755.0))
    differences = compare(base, new, Rules()).differences
    assert "median sm_clock_mhz of the timed blocks: 1980.0 in BASE, 1755.0 in NEW" in differences
    assert not compare(base, base, Rules()).differences


def test_a_disturbed_gpu(tmp_path: Path) -> None:
    def disturb(frame: pd.DataFrame, is_cell: pd.Series) -> pd.DataFrame:
        return frame.assign(status=frame["status"].mask(is_cell, "disturbed"))

    run = spoilt(tmp_path, edit_latency(disturb))
    for paths in ((H200, run), (run, H200), (run, run)):
        found = compare(*paths, Rules())
        lines = of_cell(found.gated)
        assert {(line.verdict, line.reason) for line in lines} == {
            (Verdict.INCONCLUSIVE, "disturbed")
        }
        assert TIMES < {line.what for line in lines} and found.exit_code == 4


def test_a_missing_cell(tmp_path: Path) -> None:
    run = spoilt(tmp_path, drop_cell)
    for paths, side in (((H200, run), "NEW"), ((run, H200), "BASE")):
        found = compare(*paths, Rules())
        (line,) = of_cell(found.lines)
        assert (line.what, line.verdict) == ("cell", Verdict.NOT_COMPARABLE)
        assert line.reason == f"missing in {side}" and found.exit_code == 3


def test_a_baseline_of_another_gpu(tmp_path: Path) -> None:
    run = spoilt(tmp_path, edit_record(environment={"gpu": "NVIDIA B200"}))
    found = compare(run, H200, Rules())
    (line,) = found.lines
    assert (line.verdict, line.reason) == (
        Verdict.NOT_COMPARABLE,
        "GPU: NVIDIA B200 in BASE, NVIDIA H200 in NEW",
    )
    assert found.exit_code == 3


@pytest.mark.parametrize("side", ["BASE", "NEW"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate("samples.parquet"), "samples.parquet: damaged: "),
        (truncate("run.json"), "run.json: not JSON: "),
        (truncate("latency.csv"), "latency.csv: damaged: cut short"),
        (truncate("acceptance.csv"), "acceptance.csv: damaged: cut short"),
        (truncate("capture.csv"), "capture.csv: damaged: cut short"),
        (lambda path: (path / "samples.parquet").unlink(), "samples.parquet: missing or damaged: "),
        (lambda path: (path / "run.json").write_text("[]"), "run.json: not a JSON object"),
        (edit_record(plans=None), "run.json: field plans is missing or is not a list"),
        (edit_record(schema_version=99), "run.json: schema_version 99. This cgbench reads "),
        (
            edit_latency(lambda frame, _: frame.rename(columns={"iteration_p50_ms": "p50_ms"})),
            "latency.csv: damaged: not the columns of this schema version",
        ),
    ],
    ids=[
        *("samples cut", "record cut", "latency cut", "acceptance cut", "capture cut"),
        *("samples gone", "no record", "no plans", "newer schema", "other columns"),
    ],
)
def test_files_that_are_not_whole(tmp_path: Path, spoil: Spoil, words: str, side: str) -> None:
    run = spoilt(tmp_path, spoil)
    paths = (H200, run) if side == "NEW" else (run, H200)
    cgbench("compare", *paths).refused(2, f"{run}/{words}")


def test_samples_of_one_cell_that_are_gone(tmp_path: Path) -> None:
    def spoil(path: Path) -> None:
        file = path / "samples.parquet"
        samples = pd.read_parquet(file)
        is_cell = (samples[list(CELL)] == pd.Series(CELL)).all(axis=1)
        samples[~is_cell].to_parquet(file, index=False)

    found = compare(H200, spoilt(tmp_path, spoil), Rules())
    lines = [line for line in of_cell(found.gated) if line.what in TIMES]
    assert {line.verdict for line in lines} == {Verdict.NOT_COMPARABLE}
    assert {line.reason for line in lines} == {"not in NEW"}
    assert found.exit_code == 3
