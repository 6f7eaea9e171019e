"""The gate's trial: what is planted, what is counted, and a small one from end to end."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import log1p
from pathlib import Path

import numpy as np
import pytest

import check_gate
from cgbench.gate.comparison import Rules
from cgbench.gate.evidence import Evidence, Place
from cgbench.words import Scope, Verdict
from gate import recording, report, trials
from gate.plant import Kernel
from gate.recording import Job, Recording
from tests.support.fixtures import prompts, tiny  # noqa: F401
from tests.support.forkserver import fork_context
from tests.support.runs import Made, read_once
from tests.support.short_runs import cgbench_few

SLOW = Place(Scope.ITERATION, 2, 8)
PLANT = 0.03


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four plain runs and four with every graph 3 % slower, which typically take 2 ms."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, slower in (("plain", 1.0), ("planted", 1 + PLANT)):
        (folder / kind).mkdir()
        for i in range(4):
            seed = i + 4 * (kind == "planted")
            Made(seed=seed, slower=slower).write(folder / kind / f"{i:03}")
    recording = Recording(["default"], PLANT)
    recording.planted = [
        {"scope": scope, "spec_tokens": k, "batch_size": n, "cycles": 1, "seconds": PLANT * 2e-3}
        for scope in (Scope.PHASE, Scope.ITERATION)
        for k in (0, 2)
        for n in (1, 8)
    ]
    recording.runs = recorded(4)
    recording.write(folder)
    with read_once(folder):
        yield folder


@pytest.fixture
def few(runs: Path, tmp_path: Path) -> Path:
    """Two of the plain runs and one of the planted, to change."""
    folder = tmp_path / "few"
    for run in ("plain/000", "plain/001", "planted/000"):
        shutil.copytree(runs / run, folder / run)
    known = Recording.read(runs)
    known.runs = [run for run in known.runs if (folder / run["kind"] / run["run"]).exists()]
    known.write(folder)
    return folder


def recorded(num_runs: int) -> list[dict]:
    return [
        {"kind": kind, "run": f"{i:03}", "seconds": 1.0, "code": 0}
        for kind in ("plain", "planted")
        for i in range(num_runs)
    ]


def analysed(runs: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict:
    words = ["check_gate", "analyse", str(runs), "--output", str(output), *more]
    monkeypatch.setattr(sys, "argv", words)
    check_gate.main()
    return json.loads((output / "gate.json").read_text())


def test_a_sound_gate_passes(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = analysed(runs, tmp_path, monkeypatch, "--trials", "8")
    counts = {row["what"]: (row["count"], row["total"]) for row in found["shares"]}
    assert counts["A/A: comparisons that say regressed"] == (0, 8)
    assert counts["A/A: cells inconclusive"][1] == 8 * 8
    assert counts["planted: comparisons that say regressed"] == (16, 16)
    held, intervals = counts["planted: intervals that hold it"]
    assert intervals == 16 * 8 * 2 and held / intervals > 0.93
    assert all(row["holds"] for row in found["shares"]) and not found["false_alarms"]
    assert {row["what"]: row["intervals"] for row in found["times"]} == {
        "iteration latency": 128,
        "TPOT": 128,
    }
    assert found["times"][0]["mean_change"] == pytest.approx(PLANT, abs=0.003)
    text = (tmp_path / "gate.md").read_text()
    assert "| planted: comparisons that say regressed | 16 of 16 | 100.00 % |" in text
    assert text.count("| yes |") == 4


def test_a_gate_that_cries_wolf_is_caught(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the plain runs one that is slow in truth: three of six pairs say so."""
    folder = tmp_path / "runs"
    (folder / "plain").mkdir(parents=True)
    for i in range(3):
        (folder / "plain" / f"{i:03}").symlink_to(runs / "plain" / f"{i:03}")
    (folder / "plain" / "003").symlink_to(runs / "planted" / "000")
    (folder / "planted").symlink_to(runs / "planted")
    Recording.read(runs).write(folder)
    found = analysed(folder, tmp_path / "out", monkeypatch, "--trials", "0")
    wolf = found["shares"][0]
    assert (wolf["count"], wolf["total"], wolf["holds"]) == (3, 6, False)
    assert {alarm["new"] for alarm in found["false_alarms"]} == {"003"}
    assert "| NO |" in (tmp_path / "out" / "gate.md").read_text()


def test_resampling_keeps_neighbours_and_cells_together(runs: Path) -> None:
    run = Evidence.read("a", runs / "plain" / "000")
    drawn = trials.resampled(run, np.random.default_rng(0))
    other = Place(Scope.PHASE, 0, 8)
    rows = {
        place: [
            int(np.flatnonzero(run.observed[place, "iteration"].values == value)[0])
            for value in drawn.observed[place, "iteration"].values
        ]
        for place in (SLOW, other)
    }
    assert rows[SLOW] == rows[other] and len(rows[SLOW]) == 10
    stretch = rows[SLOW][: trials.STRETCH]
    assert stretch == [(stretch[0] + i) % 10 for i in range(trials.STRETCH)]
    assert trials.resampled(run, np.random.default_rng(1)).observed[SLOW, "iteration"] is not None


def test_a_run_that_was_killed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a run that has not ended is there; that of one that has is left alone."""
    made: list[str] = []

    def run(job: Job, known: Recording, context: object, path: Path, kind: str) -> object:
        assert not path.exists()
        path.mkdir(parents=True)
        made.append(f"{kind} {path.name}")
        if made == ["plain 000", "plain 001"]:
            raise KeyboardInterrupt
        return 1.0, 0

    monkeypatch.setattr(recording, "_run", run)
    monkeypatch.setattr(recording, "_in_turn", lambda runs: [("plain", i) for i in range(runs)])
    job = Job(("default",), tmp_path, 0.03, num_runs=3, seconds=60)
    with pytest.raises(KeyboardInterrupt):
        recording.record(job, print)
    recording.record(job, print)
    assert made == ["plain 000", "plain 001", "plain 001", "plain 002"]
    assert [each["run"] for each in Recording.read(tmp_path).runs] == ["000", "001", "002"]


def test_what_was_planted_outlives_a_kill_in_the_first_run_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another calibration gives other lengths; the runs so far tell what time one takes."""
    planned: list[object] = []

    def plan(job: Job, known: Recording, context: object) -> None:
        planned.append(known)
        known.planted.append({"scope": "phase", "seconds": 1e-6})

    def run(job: Job, known: Recording, context: object, path: Path, kind: str) -> object:
        if kind == "planted" and len(planned) == 1 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KeyboardInterrupt
        return 40.0, 0

    monkeypatch.setattr(recording, "_plan_plant", plan)
    monkeypatch.setattr(recording, "_run", run)
    said: list[str] = []
    job = Job(("default",), tmp_path, 0.03, num_runs=2, seconds=60)
    with pytest.raises(KeyboardInterrupt):
        recording.record(job, said.append)
    again = recording.record(job, said.append)
    assert len(planned) == 1 and again.planted == [{"scope": "phase", "seconds": 1e-6}]
    assert said[-1].startswith("2 of 2 plain runs, 2 of 2 planted runs in ")
    recording.record(replace(job, num_runs=3, seconds=30), said.append)
    assert said[-2].startswith("no time for plain 2")


def test_only_runs_that_ended_and_can_be_compared_are_counted(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One left by a kill is no run; one that is, but not comparable, would pass for quiet."""
    folder = few
    Made(seed=99, finish=False).write(folder / "plain" / "002")
    found = analysed(folder, tmp_path / "out", monkeypatch, "--trials", "0")
    assert found["runs"] == {"plain": 2, "planted": 1}
    known = Recording.read(folder)
    known.runs.append({"kind": "plain", "run": "002", "seconds": 1.0, "code": 0})
    known.write(folder)
    with pytest.raises(SystemExit, match=r"plain/002: 002 is not finished"):
        analysed(folder, tmp_path / "out", monkeypatch, "--trials", "0")
    known.runs = [run for run in known.runs if run["kind"] == "plain"]
    known.write(folder)
    with pytest.raises(SystemExit, match="too few runs"):
        analysed(folder, tmp_path / "out", monkeypatch, "--trials", "0")


def test_the_truth_is_the_length_over_the_typical_iteration(runs: Path) -> None:
    names = Recording.read(runs).names("plain")
    plain, planted = (trials.read_runs(runs, names, kind) for kind in ("plain", "planted"))
    (trial,) = trials.planted_trials(plain[:1], planted[:1], Rules(), {SLOW: 1e-3})
    (effect,) = [e for e in trial.effects if e.place == SLOW and e.what == "iteration latency"]
    assert effect.planted == pytest.approx(0.5, rel=0.01) and not effect.covers
    assert log1p(effect.change) == pytest.approx(log1p(PLANT), abs=0.005)
    assert trial.is_regressed and Verdict.REGRESSED in trial.cells[SLOW]


def test_a_kernel_gives_the_length_asked_for() -> None:
    kernel = Kernel(base_s=1e-6, s_per_cycle=0.5e-9)
    assert kernel.seconds(kernel.cycles(20e-6)) == pytest.approx(20e-6, rel=1e-4)
    assert kernel.cycles(0.0) == 1


def test_shares_of_nothing_do_not_hold() -> None:
    assert not any(share.holds for share in report.shares([]))


def test_a_trial_that_gates_no_time_is_still_json_with_nothing_where_nothing_was_asked(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No interval is judged: its share and its means are empty, neither NaN nor 0."""
    analysed(few, tmp_path, monkeypatch, "--trials", "3", "--gate", "memory")

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = json.loads((tmp_path / "gate.json").read_text(), parse_constant=refused)
    held = found["shares"][-1]
    assert (held["count"], held["total"], held["share"], held["holds"]) == (0, 0, None, False)
    for row in found["times"]:
        assert row["intervals"] == 0
        assert [row[name] for name in ("mean_change", "mean_planted", "mean_half_width")] == (
            [None, None, None]
        )
    text = (tmp_path / "gate.md").read_text()
    assert "nan" not in text and "| planted: intervals that hold it | 0 of 0 |  |" in text


@pytest.mark.slow
def test_a_small_trial_from_end_to_end(
    tiny: Path,  # noqa: F811
    prompts: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real runs in processes of their own; every iteration of the slow ones takes five times as
    long. How many of so few and so short ones are told apart is the machine's affair."""
    fork_context()
    monkeypatch.setattr(recording, "_cgbench", cgbench_few)
    words = ("--device", "cpu", "--spec-tokens", "1", "--batch-sizes", "2", "--max-time", "0")
    short = ("--iterations", "1", "--max-new-tokens", "8", "--context-len", "12")
    command = [str(tiny), *words, *short, "--prompts", str(prompts)]
    for num_runs in ("1", "2"):  # the second call goes on where the first one ended
        flags = ("--output", str(tmp_path / "runs"), "--runs", num_runs, "--share", "4")
        monkeypatch.setattr(sys, "argv", ["check_gate", "record", *flags, "--", *command])
        check_gate.main()
    known = Recording.read(tmp_path / "runs")
    assert [(run["kind"], run["run"]) for run in known.runs] == [
        ("plain", "000"),
        ("planted", "000"),
        ("plain", "001"),
        ("planted", "001"),
    ]
    lengths = known.seconds_planted()
    assert set(lengths) == {("eager", 0, 2), ("eager", 1, 2)} and min(lengths.values()) > 0
    gate = ("--gate", "iteration,eager", "--trials", "3")
    found = analysed(tmp_path / "runs", tmp_path / "out", monkeypatch, *gate)
    assert [share["total"] for share in found["shares"]] == [3, 6, 4, 8]
    assert found["times"][0]["mean_change"] > 1
