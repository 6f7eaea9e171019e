"""SIGKILL at three moments of real runs: no finished group is lost, nothing half done reads as
complete, and what is left goes on to a run like any other."""

import random
from pathlib import Path

import pandas as pd
import pytest

from cgbench.gate.comparison import Rules, compare
from cgbench.gate.verdicts import Gate
from cgbench.rundir.store import RunDirectory
from cgbench.words import Verdict
from tests.support.command import FAST, cgbench
from tests.support.killing import Runs

BATCH_SIZES = [1, 2]

# Shares of an uninterrupted run's time: one somewhere in each third.
MOMENTS = [(third + random.Random(third).random()) / 3 for third in range(3)]


@pytest.fixture(scope="module")
def runs(tiny: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    flags = ("--spec-tokens", "1", "--prompts", prompts)
    return Runs.make(("run", tiny, *FAST, *flags), tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def seconds(runs: Runs) -> float:
    """Of a run that nothing interrupts; the server has started."""
    return runs.whole("reference")


def numbers(path: Path) -> dict[str, pd.DataFrame]:
    """What was measured, of finished groups."""
    tables = RunDirectory.open(path).tables
    return {
        "latency": tables.latency,
        "samples": tables.samples,
        "acceptance": tables.acceptance,
        "blocks": tables.blocks,
    }


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment:.3f}")
def test_killed_at_a_moment(runs: Runs, seconds: float, moment: float) -> None:
    name = f"{moment:.6f}"
    path = runs.folder / name
    runs.killed(name, moment * seconds)
    if not (path / "run.json").exists():
        # Killed before the run began: nothing was measured, and nothing reads as a run.
        cgbench("compare", path, path).refused(2, f"{path / 'run.json'}: missing")
        return
    before = RunDirectory.open(path)
    kept, measured = sorted(before.finished_batch_sizes), numbers(path)
    assert kept == BATCH_SIZES[: len(kept)]
    if before.record.complete:
        assert kept == BATCH_SIZES
        return
    done = cgbench("compare", path, path)
    assert done.code == 3 and "is not finished. Go on with cgbench run --resume" in done.stdout
    runs.whole(name, "--resume")
    after = RunDirectory.open(path)
    assert after.record.complete and sorted(after.finished_batch_sizes) == BATCH_SIZES
    assert [entry["kept_batch_sizes"] for entry in after.record.resumed] == [kept]
    for table, rows in numbers(path).items():
        of_kept = rows[rows["batch_size"].isin(kept)].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_kept, measured[table])
    assert_like_any_other(runs.folder / "reference", path)


def assert_like_any_other(reference: Path, path: Path) -> None:
    """Everything that does not hang on the clock is as in a run that nothing interrupted."""
    found = compare(reference, path, Rules(gate=Gate.parse("acceptance,facts,eager")))
    assert {line.verdict for line in found.gated} == {Verdict.SAME} and found.exit_code == 0
    assert {line.verdict for line in compare(path, path, Rules()).lines} == {Verdict.SAME}
