"""``cgbench tune --verify``: predicted beside measured, with a recorded run for the measurement."""

import shutil
from pathlib import Path

import pytest

from cgbench.cli.offline import verify
from cgbench.request.run_request import RunRequest
from tests.support.command import Done, cgbench
from tests.support.recorded import H200

MANY_K = H200 / "qwen3.5-0.8b-k0123"


def verified(out: Path, *asked: str) -> Done:
    return cgbench("tune", MANY_K, "--acceptance", "synthetic:0.8,0.6,0.4", *asked, "--verify", out)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[RunRequest]:
    """What was asked to be measured. The recorded run stands for what that gives."""
    asked: list[RunRequest] = []

    def copy(request: RunRequest, part: Path, name: str, progress: object) -> None:
        asked.append(request)
        shutil.copytree(MANY_K, part)

    monkeypatch.setattr(verify, "run_apart", copy)
    return asked


def test_what_is_measured_again_agrees_with_itself(
    measured: list[RunRequest], tmp_path: Path
) -> None:
    done = verified(tmp_path / "again")
    assert done.code == 0, done.stderr
    assert "Gains measured again" in done.stdout
    assert "agrees" in done.stdout and "differs" not in done.stdout


def test_the_ends_of_tiers_are_measured_with_the_runs_own_flags(
    measured: list[RunRequest], tmp_path: Path
) -> None:
    verified(tmp_path / "again")
    (request,) = measured
    record = request.to_record()
    assert record["batch_sizes"] == [1, 64] and record["spec_tokens"] == [0, 1, 2, 3]
    assert record["scopes"] == ["iteration"] and record["max_num_seqs"] == 64
    assert record["model"] == "preset:qwen3.5-0.8b" and record["context_len"] == 1024


def test_another_time_than_predicted_is_a_no(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pyarrow.parquet as parquet

    def slower(request: RunRequest, part: Path, name: str, progress: object) -> None:
        """k = 3 takes a third more."""
        shutil.copytree(MANY_K, part)
        file = part / "samples.parquet"
        frame = parquet.read_table(file).to_pandas()
        is_it = (frame["spec_tokens"] == 3) & (frame["scope"] == "iteration")
        for column in ("gpu_s", "wall_s"):
            frame.loc[is_it, column] *= 1.3
        from cgbench.rundir.parquet_file import write_parquet
        from cgbench.rundir.schema import SAMPLES
        from cgbench.rundir.summary import typed_frame

        write_parquet(typed_frame(frame, SAMPLES), file)

    monkeypatch.setattr(verify, "run_apart", slower)
    done = verified(tmp_path / "again")
    assert done.code == 1
    assert "differs" in done.stdout


def test_without_advice_there_is_nothing_to_measure(tmp_path: Path) -> None:
    done = cgbench("tune", MANY_K, "--verify", tmp_path / "again")
    assert done.code == 3 and "--verify: nothing is advised" in done.stderr


def test_verify_prints_tables_alone(tmp_path: Path) -> None:
    verified(tmp_path / "again", "--json").refused(2, "--verify", "--json")


def test_a_folder_that_holds_something_is_kept(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    done = verified(tmp_path)
    assert done.code == 2 and "is not empty" in done.stderr
