"""``cgbench run --thin``: a baseline at once, the same as one kept from the full run."""

import json
import shutil
from pathlib import Path

import pytest

from cgbench.cli import run_output
from cgbench.errors import ExitCode
from cgbench.gate.comparison import Rules, compare
from cgbench.gate.verdicts import Gate
from cgbench.rundir import thin
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.thin import write_thin
from cgbench.words import Status
from tests.support.command import FAST, Done, cgbench

EVERYTHING = Rules(gate=Gate.parse("iteration,tpot,acceptance,host-gap,verify,facts,eager"))

ONE_SIZE = ("--batch-sizes", "1")


def run(tiny: Path, prompts: Path, path: Path, *more: object) -> Done:
    flags = ("--spec-tokens", "1", "--prompts", prompts, "--output", path)
    return cgbench("run", tiny, *FAST, *flags, *more)


@pytest.fixture(scope="module")
def twins(tiny: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """A thin run; beside it, as ``full``, what it was before it became thin."""
    folder = tmp_path_factory.mktemp("twins")
    real = thin.make_thin

    def keeping(directory: RunDirectory) -> int:
        shutil.copytree(directory.path, folder / "full")
        return real(directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thin, "make_thin", keeping)
        done = run(tiny, prompts, folder / "thin", "--thin")
    return done, folder


def test_it_is_marked_small_and_has_the_full_runs_table(twins: tuple[Done, Path]) -> None:
    done, folder = twins
    assert done.code == 0 and "kept as a thin baseline: " in done.stderr
    full, small = (RunDirectory.open(folder / name).record for name in ("full", "thin"))
    assert (full.thin, small.thin, small.complete) == (False, True, True)
    assert small.arguments == full.arguments
    assert sum(file.stat().st_size for file in (folder / "thin").iterdir()) < 100_000
    latency = [(folder / name / "latency.csv").read_bytes() for name in ("full", "thin")]
    assert latency[0] == latency[1]


def test_it_is_what_thin_baseline_makes_of_the_full_run(
    twins: tuple[Done, Path], tmp_path: Path
) -> None:
    _, folder = twins
    write_thin(folder / "full", tmp_path / "kept")
    contents = [
        {file.name: file.read_bytes() for file in path.iterdir()}
        for path in (folder / "thin", tmp_path / "kept")
    ]
    assert contents[0] == contents[1]


def test_it_compares_exactly_as_its_full_twin(
    twins: tuple[Done, Path], tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    _, folder = twins
    assert run(tiny, prompts, tmp_path / "again").code == 0
    for base, new in (("full", "again"), ("again", "full")):
        paths = {"again": tmp_path / "again", "full": folder / "full"}
        whole = compare(paths[base], paths[new], EVERYTHING)
        paths["full"] = folder / "thin"
        small = compare(paths[base], paths[new], EVERYTHING)
        assert whole.lines == small.lines and whole.level == small.level
        assert len([line for line in whole.lines if line.low is not None]) > 10


def test_a_run_too_large_is_kept_whole(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thin, "MAX_BYTES", 1000)
    path = tmp_path / "run"
    done = run(tiny, prompts, path, "--thin", *ONE_SIZE)
    assert done.code == 3
    assert f"error: --thin: {path} is kept whole: " in done.stderr.splitlines()[-1]
    record = RunDirectory.open(path).record
    assert record.complete and not record.thin
    assert not any(file.is_dir() for file in path.iterdir())


def test_a_wrong_cell_is_the_worse_thing_to_tell(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thin, "MAX_BYTES", 1000)
    wrong = {Status.AUDIT_FAILED: ExitCode.ANSWER_IS_NO, Status.OK: ExitCode.ANSWER_IS_NO}
    monkeypatch.setattr(run_output, "EXIT_CODES", wrong)
    done = run(tiny, prompts, tmp_path / "run", "--thin", *ONE_SIZE)
    assert done.code == 1 and "is kept whole" in done.stderr


def test_tokens_are_not_kept(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    run(tiny, prompts, tmp_path / "run", "--thin", "--save-tokens").refused(2, "--save-tokens")


def test_json_still_has_the_numbers(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    done = run(tiny, prompts, tmp_path / "run", "--thin", "--json", *ONE_SIZE)
    found = json.loads(done.stdout)
    assert all(row["iteration_p50_ms"] > 0 for row in found["latency"])
