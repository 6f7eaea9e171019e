"""A floor that is beaten is wrong, and no table says otherwise."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cgbench.rundir.floor_verdict import floor_lines, with_floor_verdicts
from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import COLD, WARM
from cgbench.rundir.store import RunDirectory
from cgbench.words import Status
from tests.support.example import make_record

RESULTS = Path(__file__).parents[2] / "results"
RUNS = sorted(file.parent for file in RESULTS.rglob("latency.csv"))


def record(**limits: Any) -> RunRecord:
    found = make_record()
    found.floor = {"limits": {"read_bytes_per_s": 1e12, "flops_per_s": 1e14, **limits}}
    found.model = {**found.model, "weight_bytes": 1000}
    return found


def row(floor_ms: float, p50_ms: float = 1.0, **changes: Any) -> pd.DataFrame:
    values = {
        "scope": "iteration",
        "spec_tokens": 3,
        "batch_size": 8,
        "status": Status.OK.value,
        "floor_ms": floor_ms,
        "iteration_p50_ms": p50_ms,
        "floor_frac": floor_ms / p50_ms,
        "half_width_frac": 0.01,
        "l2": WARM,
        **changes,
    }
    return pd.DataFrame([values])


def test_a_floor_that_holds_is_left_as_it_is() -> None:
    frame = row(0.8)
    pd.testing.assert_frame_equal(with_floor_verdicts(frame, record()), frame)
    assert not [*floor_lines(frame, record())]


@pytest.mark.parametrize("floor_ms", [1.005, 1.0299])
def test_within_what_is_known_the_share_is_one(floor_ms: float) -> None:
    """One per cent of the interval and two of the bandwidth."""
    judged = with_floor_verdicts(row(floor_ms), record(read_spread_frac=0.02))
    assert judged["floor_frac"].tolist() == [1.0]
    assert judged["status"].tolist() == ["ok"]


@pytest.mark.parametrize("status", ["ok", "disturbed"])
def test_beyond_it_the_row_has_no_share_and_says_why(status: str) -> None:
    known = record(read_spread_frac=0.02)
    judged = with_floor_verdicts(row(1.04, status=status), known)
    assert judged["status"].tolist() == ["floor_beaten"]
    assert judged["floor_frac"].isna().all()
    assert judged["iteration_p50_ms"].tolist() == [1.0]
    (line,) = floor_lines(judged, known)
    assert "iteration k=3, batch size 8" in line and "104.0%" in line


def test_a_cell_that_failed_keeps_its_status() -> None:
    judged = with_floor_verdicts(row(9.0, status="oom", iteration_p50_ms=None), record())
    assert judged["status"].tolist() == ["oom"]


def test_weights_that_fit_the_cache_are_told_instead() -> None:
    known = record(cache_bytes=1000)
    judged = with_floor_verdicts(row(1.5), known)
    assert judged["status"].tolist() == ["ok"]
    assert judged["floor_frac"].isna().all()
    (line,) = floor_lines(judged, known)
    assert "1,000 bytes, fit the device's cache" in line


def test_a_flushed_cache_holds_no_weights() -> None:
    judged = with_floor_verdicts(row(1.5, l2=COLD), record(cache_bytes=1000))
    assert judged["status"].tolist() == ["floor_beaten"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(RESULTS)))
def test_a_recorded_run_is_opened_and_does_not_beat_its_floor(path: Path) -> None:
    directory = RunDirectory.open(path)
    latency = directory.latency()
    assert directory.record.complete and len(latency) and len(directory.samples())
    assert not (latency["floor_frac"] > 1).any()
    assert not [*floor_lines(latency, directory.record)]
    if directory.record.engine:
        return  # What an engine in a process of its own reads is not counted.
    mixtures = latency["model"].str.contains("a3b|deepseek|glm-4")
    assert latency.loc[mixtures, "experts_read"].notna().all()
