"""A thin run directory holds all that ``compare`` needs of a run, and is small enough to commit.

It is a run directory like any other. Its samples are one a block and stage instead of one an
iteration. Comparing with it gives the verdicts that the full one gives.
"""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cgbench.errors import CannotError, RunDirectoryError
from cgbench.request.command_line import resume_command
from cgbench.rundir.block_times import BLOCKS, WALL, block_times
from cgbench.rundir.files import (
    ACCEPTANCE_FILE,
    BLOCKS_FILE,
    CAPTURE_FILE,
    LATENCY_FILE,
    MARKDOWN_FILE,
    RECORD_FILE,
    SAMPLES_FILE,
    TOKENS_FILE,
    check_is_file,
    read_run,
)
from cgbench.rundir.folders import check_new_folder
from cgbench.rundir.parquet_file import write_parquet
from cgbench.rundir.record import RunRecord
from cgbench.rundir.record_parts import FloorFacts
from cgbench.rundir.schema import SAMPLES
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import CELL, typed_frame
from cgbench.words import Stage

MAX_BYTES = 1_000_000

KEPT_FILES = (LATENCY_FILE, ACCEPTANCE_FILE, CAPTURE_FILE, MARKDOWN_FILE)
DROPPED_FILES = (BLOCKS_FILE, TOKENS_FILE)


def write_thin(source: Path, path: Path) -> int:
    """Write the run in ``source`` to ``path``, which must not exist or be empty, and return its
    bytes.

    Raise ``RunDirectoryError`` if ``source`` is damaged or not finished, or if ``path`` cannot be
    written. Raise ``CannotError`` if the run is too large.
    """
    run = RunDirectory.open(source)
    if not run.record.complete:
        raise RunDirectoryError(
            f"--thin-baseline: {source} is not finished. This goes on: "
            + resume_command(run.record.arguments, source)
        )
    check_new_folder("--thin-baseline", path, "Remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            made = Path(aside) / "made"
            made.mkdir()
            num_bytes = _write(run, made, "--thin-baseline")
            os.replace(made, path)
    except OSError as error:
        raise RunDirectoryError(f"--thin-baseline {path}: {error.strerror}") from error
    return num_bytes


def make_thin(run: RunDirectory) -> int:
    """Make a finished run thin where it is, and return its bytes.

    Raise ``CannotError`` if it would still be too large. Then it stays as it is.
    """
    with tempfile.TemporaryDirectory(dir=run.path) as aside:
        made = Path(aside)
        num_bytes = _write(run, made, f"--thin: {run.path} is kept whole")
        # A kill in between leaves more than the record states, never less.
        for name in (RECORD_FILE, SAMPLES_FILE):
            os.replace(made / name, run.path / name)
    for name in DROPPED_FILES:
        (run.path / name).unlink(missing_ok=True)
    run.record, run.tables = read_run(run.path)
    return num_bytes


def _write(run: RunDirectory, made: Path, refusal: str) -> int:
    """Write all files of a thin directory, and return their bytes."""
    for name in KEPT_FILES:
        check_is_file(run.path / name)
        shutil.copyfile(run.path / name, made / name)
    write_parquet(thin_samples(run.samples()), made / SAMPLES_FILE)
    (made / RECORD_FILE).write_text(thin_record(run.record).to_json(), encoding="utf-8")
    num_bytes = sum(file.stat().st_size for file in made.iterdir())
    if num_bytes > MAX_BYTES:
        raise CannotError(
            f"{refusal}: {num_bytes} bytes, over the {MAX_BYTES} of a baseline. "
            "Measure fewer --batch-sizes, --scopes or --spec-tokens"
        )
    return num_bytes


def thin_record(record: RunRecord) -> RunRecord:
    """Return the record marked as thin. The floors' accounts are left out, because they are not
    compared and are most of it.
    """
    limits = record.floor.get("limits")
    floor = FloorFacts() if limits is None else FloorFacts(limits=limits)
    return replace(record, thin=True, floor=floor)


def thin_samples(samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell, block and stage, with the ``SAMPLES`` columns. Values are medians, but
    the wall time is a mean. The host gap is a stage.
    """
    times = block_times(samples)
    stages = times.drop(columns=WALL)
    rows = stages.melt(var_name="stage", value_name="gpu_s", ignore_index=False)
    rows = rows.dropna().reset_index().sort_values([*BLOCKS, "stage"], ignore_index=True)
    wall_s = rows.join(times[WALL], on=BLOCKS)[WALL]
    modes = samples.drop_duplicates(CELL).set_index(CELL)["mode"]
    rows = rows.join(modes, on=CELL).assign(
        iteration=0, wall_s=wall_s.where(rows["stage"] == str(Stage.ITERATION))
    )
    return typed_frame(rows, SAMPLES)
