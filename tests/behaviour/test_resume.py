"""``--resume``: what a kill leaves behind, and how a run goes on from there."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cgbench.engine.runner import EagerRunner
from cgbench.measure import group
from cgbench.measure.session import Session
from cgbench.request.command_line import resume_command
from cgbench.rundir.store import RunDirectory, sole_writer
from tests.support.command import FAST, Done, cgbench
from tests.support.runs import Made


class Command:
    """One run, started again and again in the same folder."""

    def __init__(self, tiny: Path, prompts: Path, path: Path) -> None:
        where = ("--prompts", prompts, "--output", path)
        self.args = ("run", tiny, *FAST, "--spec-tokens", "1", "--save-tokens", *where)
        self.path = path

    def __call__(self, *more: object) -> Done:
        return cgbench(*self.args, *more)

    def files(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.path.iterdir()}


@pytest.fixture
def command(tiny: Path, prompts: Path, tmp_path: Path) -> Command:
    return Command(tiny, prompts, tmp_path / "run")


Measure = Callable[[Session, int, Callable[[], None]], group.Group]


def failing_at(batch_size: int, error: BaseException) -> Measure:
    real = group.measure_group

    def measure(session: Session, size: int, on_step: Callable[[], None]) -> group.Group:
        if size == batch_size:
            raise error
        return real(session, size, on_step)

    return measure


def interrupt(command: Command, error: BaseException) -> Done:
    """A run that ends at the second of its two groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "measure_group", failing_at(2, error))
        return command()


@pytest.fixture(scope="module")
def half(tiny: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one of two groups; tests take copies."""
    command = Command(tiny, prompts, tmp_path_factory.mktemp("half") / "run")
    interrupt(command, RuntimeError("boom"))
    return command.path


@pytest.fixture
def interrupted(command: Command, half: Path) -> Command:
    shutil.copytree(half, command.path)
    return command


def test_one_process_at_a_time_goes_on(interrupted: Command) -> None:
    """Both would measure the same batch sizes, at once."""
    files = interrupted.files()
    with sole_writer(interrupted.path):
        interrupted("--resume").refused(2, "--output", "another process is writing it")
    assert interrupted.files() == files
    assert interrupted("--resume").code == 0


def record_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that are measured from now on."""
    real, sizes = group.measure_group, []

    def measure(session: Session, size: int, on_step: Callable[[], None]) -> group.Group:
        sizes.append(size)
        return real(session, size, on_step)

    monkeypatch.setattr(group, "measure_group", measure)
    return sizes


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (RuntimeError("boom\nand more"), 3)],
    ids=["ctrl-c", "a crash"],
)
def test_a_finished_group_outlives_the_run(
    command: Command, error: BaseException, code: int
) -> None:
    done = interrupt(command, error)
    assert done.code == code and "Traceback" not in done.stderr and done.stdout == ""
    directory = RunDirectory.open(command.path)
    assert not directory.record.complete
    assert directory.finished_batch_sizes == {1}
    assert directory.samples()["batch_size"].unique().tolist() == [1]
    assert {row["batch_size"] for row in directory.tokens()} == {1}


def test_out_of_memory_outside_a_cell_ends_the_run_with_one_line(command: Command) -> None:
    done = interrupt(command, torch.OutOfMemoryError("CUDA out of memory. Tried"))
    done.refused(3, "out of memory")
    assert RunDirectory.open(command.path).finished_batch_sizes == {1}


def test_resume_measures_only_what_is_missing(
    interrupted: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = RunDirectory.open(interrupted.path)
    cells, samples = before.latency(), before.samples()
    sizes = record_sizes(monkeypatch)
    done = interrupted("--resume")
    assert (done.code, sizes) == (0, [2])
    after = RunDirectory.open(interrupted.path)
    assert after.record.complete and after.record.created_utc == before.record.created_utc
    (resumed,) = after.record.resumed
    assert resumed["kept_batch_sizes"] == [1] and resumed["utc"] >= after.record.created_utc
    assert (
        f"- resumed: {resumed['utc']}, kept batch sizes 1\n"
        in (interrupted.path / "latency.md").read_text()
    )
    assert after.latency()["batch_size"].tolist() == [1, 1, 2, 2]
    assert after.latency().query("batch_size == 1").equals(cells)
    assert after.samples().query("batch_size == 1").equals(samples)
    assert after.latency()["tokens_sha256"].nunique() == 1
    assert [row["batch_size"] for row in after.tokens()] == [1] * 6 + [2] * 6
    # Once complete, there is nothing left to measure or to change.
    files = interrupted.files()
    interrupted("--resume").refused(2, "--resume", "complete")
    assert sizes == [2] and interrupted.files() == files


def test_a_resumed_run_keeps_the_status_of_a_failed_cell(command: Command) -> None:
    """The first group failed its audit before the kill; the second is good. The answer is no."""
    real = EagerRunner.step

    def step(self: EagerRunner, batch_size: int) -> None:
        real(self, batch_size)
        self.state.full.out[0, 0] += self.state.spec_tokens

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EagerRunner, "step", step)
        interrupt(command, RuntimeError("boom"))
    done = command("--resume")
    assert done.code == 1, done.stderr
    frame = RunDirectory.open(command.path).latency()
    assert frame["status"].tolist() == ["ok", "audit_failed", "ok", "ok"]
    assert "audit_failed" in done.stdout
    assert frame["iteration_p50_ms"].isna().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "other",
    ["--seed 2", "--iterations 11", "--batch-sizes 1,2,3", "--spec-tokens 2", "--scopes eager"],
)
def test_resume_with_another_flag_is_refused_by_its_name(interrupted: Command, other: str) -> None:
    files = interrupted.files()
    interrupted("--resume", *other.split()).refused(2, "--resume", other.split()[0], "run.json")
    assert interrupted.files() == files


def test_resume_with_other_weights_is_refused(interrupted: Command) -> None:
    """As after another checkpoint was put into the same folder."""
    file = interrupted.path / "run.json"
    record = json.loads(file.read_text())
    record["model"]["fingerprint"] = "0" * 16
    file.write_text(json.dumps(record))
    interrupted("--resume").refused(2, "--resume", "model")


def test_resume_with_other_prompts_is_refused(interrupted: Command, prompts: Path) -> None:
    """The same file's name, other prompts in it: the groups would not be of one workload."""
    text = prompts.read_text()
    prompts.write_text('{"prompt": "something else"}\n')
    try:
        done = interrupted("--resume")
    finally:
        prompts.write_text(text)
    done.refused(2, "--resume", "prompts")


def test_resume_of_nothing_names_the_file_it_looked_for(command: Command) -> None:
    command("--resume").refused(2, str(command.path / "run.json"))
    assert not command.path.exists()


@pytest.mark.parametrize("begun", ["run.json", "processes/0/run.json"])
def test_an_interrupted_run_says_where_it_lies_and_how_to_go_on(
    begun: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"

    def interrupted(*_: object, **__: object) -> None:
        (path / begun).parent.mkdir(parents=True)
        (path / begun).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("cgbench.door.run.run", interrupted)
    done = cgbench("run", tiny, *FAST, "--output", path)
    kept = f"the same flags with --output {path} --resume go on"
    line = f"interrupted. Finished batch sizes are kept: {kept}\n"
    assert (done.code, done.stdout, done.stderr) == (130, "", line)


def test_an_interrupted_run_and_show_name_the_command_that_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"

    def interrupted(*_: object, **__: object) -> None:
        Made(finish=False).write(path)
        raise KeyboardInterrupt

    monkeypatch.setattr("cgbench.door.run.run", interrupted)
    done = cgbench("run", tiny, *FAST, "--output", path)
    command = resume_command(RunDirectory.open(path).record.arguments, path)
    assert command.endswith(f" --output {path} --resume")
    line = f"interrupted. Finished batch sizes are kept. This goes on: {command}\n"
    assert (done.code, done.stdout, done.stderr) == (130, "", line)
    shown = cgbench("show", path)
    assert shown.code == 0
    assert f"{path} is not finished. This goes on: {command}\n" in shown.stderr


def test_a_run_interrupted_before_it_began_keeps_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cgbench.door.run.run", interrupted)
    done = cgbench("run", tiny, *FAST, "--output", tmp_path / "run")
    assert (done.code, done.stderr) == (130, "")


def test_a_full_disk_names_the_run_and_loses_no_batch_size(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command(tiny, prompts, tmp_path / "run")
    write = RunDirectory.write_group

    def write_first(directory: RunDirectory, *args: object) -> object:
        if directory.finished_batch_sizes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(directory, *args)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "write_group", write_first)
        words = ("cannot be written: No space left on device", "--resume goes on")
        command().refused(3, f"error: {command.path}", *words)
    assert RunDirectory.open(command.path).finished_batch_sizes == {1}
    assert command("--resume").code == 0
