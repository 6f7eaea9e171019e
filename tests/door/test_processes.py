"""``--processes``: real processes of their own, one run directory, and what a failed one leaves."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgbench.door import processes, worker
from cgbench.door.relay import Relay
from cgbench.progress import Progress
from cgbench.request.run_request import RunRequest
from cgbench.rundir.store import RunDirectory
from tests.support.command import FAST, Done, cgbench
from tests.support.forkserver import PRELOADED
from tests.support.quick_python import quick_python


@pytest.fixture(scope="module", autouse=True)
def forked_processes() -> Iterator[None]:
    """Each would import everything anew."""
    python = str(quick_python(*PRELOADED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.sys, "executable", python)
        yield


def run(tiny: Path, prompts: Path, path: Path, *more: object) -> Done:
    common = ("--spec-tokens", "1", "--processes", "2", "--save-tokens", "--prompts", prompts)
    return cgbench("run", tiny, *FAST, *common, "--output", path, *more)


@pytest.fixture(scope="module")
def finished(
    tiny: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Done, RunDirectory]:
    path = tmp_path_factory.mktemp("processes") / "run"
    done = run(tiny, prompts, path)
    return done, RunDirectory.open(path)


def test_two_processes_are_one_run(finished: tuple[Done, RunDirectory]) -> None:
    done, directory = finished
    assert done.code == 0, done.stderr
    assert directory.record.complete and directory.record.arguments["processes"] == 2
    samples = directory.samples()
    assert set(samples["process"]) == {0, 1}
    latency = directory.latency()
    assert latency["batch_size"].tolist() == [1, 1, 2, 2] and set(latency["status"]) == {"ok"}
    assert set(latency["blocks"]) == {16} and len(directory.blocks()) == 4 * 16
    timed = samples[samples["stage"] == "iteration"]
    assert latency["iterations"].sum() == len(timed)
    assert len(directory.tokens()) == 4 * 3
    assert not (directory.path / "processes").exists()
    assert done.stdout.count("eager") >= 4


def test_what_a_process_reports_is_printed_by_the_command(
    finished: tuple[Done, RunDirectory],
) -> None:
    """``stderr`` is this process's alone, so every line of it was sent here."""
    measured = ["measured batch size 1", "measured batch size 2"]
    lines = finished[0].stderr.splitlines()
    found = [line for line in lines if line.startswith(("process ", "measured "))]
    assert found == ["process 1 of 2", *measured, "process 2 of 2", *measured]


def test_compare_counts_processes(finished: tuple[Done, RunDirectory], tmp_path: Path) -> None:
    path = finished[1].path
    done = cgbench("compare", path, path, "--format", "json", "--gate", "iteration,eager")
    lines = json.loads(done.stdout)["lines"]
    lines = [line for line in lines if line["what"] == "iteration latency"]
    assert done.code == 0 and len(lines) == 4
    assert {(line["verdict"], line["base_blocks"]) for line in lines} == {("same", 2)}


def test_a_complete_run_is_not_gone_on_with(
    finished: tuple[Done, RunDirectory], tiny: Path, prompts: Path
) -> None:
    run(tiny, prompts, finished[1].path, "--resume").refused(2, "--resume", "complete")


@pytest.fixture
def half(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Done, Path]:
    """The second process finds a model that is gone: its folder was moved away meanwhile."""
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    real = processes.run_apart

    def failing(request: RunRequest, part: Path, name: str, progress: Progress) -> None:
        if part.name == "1":
            shutil.rmtree(model)
        real(request, part, name, progress)

    with monkeypatch.context() as patch:
        patch.setattr(processes, "run_apart", failing)
        done = run(model, prompts, tmp_path / "run")
    shutil.copytree(tiny, model)
    return done, model


def test_a_process_that_fails_gives_one_line_and_resume_keeps_the_others(
    half: tuple[Done, Path], prompts: Path, tmp_path: Path
) -> None:
    done, model = half
    path = tmp_path / "run"
    done.refused(2, "--processes: process 2 of 2", str(model), "--resume")
    cgbench("compare", path, path).refused(2, "run.json")
    first = RunDirectory.open(path / "processes" / "0")
    samples = first.samples()
    assert first.record.complete
    run(model, prompts, path, "--seed", "5", "--resume").refused(2, "--resume", "--seed")
    resumed = run(model, prompts, path, "--resume")
    assert resumed.code == 0, resumed.stderr
    (gone_on,) = RunDirectory.open(path).record.resumed
    assert gone_on["kept_processes"] == [0]
    merged = RunDirectory.open(path).samples()
    assert merged[merged["process"] == 0].equals(samples) and set(merged["process"]) == {0, 1}


def test_resume_of_nothing(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    run(tiny, prompts, tmp_path / "none", "--resume").refused(2, "--resume", "processes")


def test_a_process_that_is_killed_says_so(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.sys, "executable", str(killer(tmp_path)))
    run(tiny, prompts, tmp_path / "run").refused(3, "process 1 of 2: ended with status -9")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_process_gives_its_reason_in_any_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    model = tmp_path / "modèle"
    model.mkdir()
    done = cgbench("run", model, *FAST, "--processes", "2", "--output", tmp_path / "run")
    done.refused(2, f"MODEL {model}: the folder has no config.json")


def test_an_interrupted_process_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "measure", interrupted)
    job, sent = {"request": {}, "path": "run", "resume": False}, io.StringIO()
    assert worker.work(io.StringIO(json.dumps(job)), Relay(sent)) == 130
    assert sent.getvalue() == ""


def killer(folder: Path) -> Path:
    """A program that kills itself."""
    script = folder / "killer"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    return script


def test_no_process_at_all_is_refused(tiny: Path, tmp_path: Path) -> None:
    done = cgbench("run", tiny, "--processes", "0", "--output", tmp_path / "run")
    assert done.code == 2 and "--processes" in done.stderr
