"""Records of older schema versions, as they were really written."""

import json
import shutil
from pathlib import Path

import pytest

from cgbench.errors import RunDirectoryError
from cgbench.gate.comparison import Rules, compare
from cgbench.rundir.migrations import SCHEMA_VERSION, STEPS
from cgbench.rundir.store import RunDirectory
from cgbench.tables.latency import latency_markdown
from cgbench.words import Verdict

H200 = Path(__file__).parents[2] / "results" / "h200"

# The marks of version 1's first day; later runs of it have more columns.
RECORDED = sorted(file.parent for file in H200.glob("*/run.json"))
OLD = [
    path
    for path in RECORDED
    if json.loads((path / "run.json").read_text())["schema_version"] < SCHEMA_VERSION
]

# What version 1 wrote into a thin directory's warnings.
THIN_1 = "thin: samples.parquet holds one median a block, not every iteration"


def test_there_is_a_step_from_every_version_to_this_one() -> None:
    assert [*STEPS] == [*range(1, SCHEMA_VERSION)] and len(OLD) > 5


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name)
def test_a_recorded_run_of_an_older_version_is_read_whole(path: Path) -> None:
    raw = json.loads((path / "run.json").read_text())
    run = RunDirectory.open(path)
    record = run.record
    assert record.schema_version == SCHEMA_VERSION
    assert (record.thin, record.resumed) == (False, [])
    unchanged = raw.keys() - {"schema_version"}
    assert {name: getattr(record, name) for name in unchanged} == {n: raw[n] for n in unchanged}
    assert len(run.latency()) and len(run.samples())


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(H200 / "qwen3-0.6b-k3", tmp_path / "run")
    return tmp_path / "run"


def rewrite(path: Path, **changes: object) -> None:
    file = path / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_thin_directory_of_version_1_is_thin(copied: Path) -> None:
    rewrite(copied, warnings=["another", THIN_1])
    record = RunDirectory.open(copied).record
    assert (record.thin, record.warnings) == (True, ["another"])


def test_a_damaged_record_of_version_1_is_named_not_migrated(copied: Path) -> None:
    rewrite(copied, warnings="none")
    with pytest.raises(RunDirectoryError, match="field warnings is missing or is not a list"):
        RunDirectory.open(copied)


def test_versions_are_compared_across(copied: Path) -> None:
    """A baseline outlives the schema version that it was written in."""
    RunDirectory.open(copied).finish(latency_markdown)
    assert json.loads((copied / "run.json").read_text())["schema_version"] == SCHEMA_VERSION
    found = compare(H200 / "qwen3-0.6b-k3", copied, Rules())
    assert {line.verdict for line in found.lines} == {Verdict.SAME} and not found.differences
