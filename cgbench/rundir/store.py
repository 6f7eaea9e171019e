"""Write a run directory a batch size at a time, so that a kill loses no finished group.

Every file is written aside and renamed into place. ``latency.csv`` goes last and decides what is
finished. Other files may hold rows of a batch size that it lacks. They are left over from a kill,
are never read, and are gone at the next write.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeAlias, cast

import pandas as pd

from cgbench.engine.graph_cost import GraphCost
from cgbench.errors import RunDirectoryError
from cgbench.rundir.block_schema import BLOCKS, Block
from cgbench.rundir.differences import differing
from cgbench.rundir.files import (
    ACCEPTANCE_FILE,
    BLOCKS_FILE,
    CAPTURE_FILE,
    LATENCY_FILE,
    MARKDOWN_FILE,
    RECORD_FILE,
    SAMPLES_FILE,
    TOKENS_FILE,
    Tables,
    read_run,
)
from cgbench.rundir.floor_verdict import with_floor_verdicts
from cgbench.rundir.folders import check_new_folder
from cgbench.rundir.parquet_file import write_parquet
from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import ACCEPTANCE, CAPTURE, LATENCY, SAMPLES, Cell, Sample, TokenRow
from cgbench.rundir.summary import (
    acceptance_frame,
    capture_frame,
    latency_frame,
    samples_frame,
    telemetry_summary,
    typed_frame,
    with_break_even,
)
from cgbench.rundir.token_file import SavedTokens

SIGNIFICANT_DIGITS = "%.6g"

ToMarkdown: TypeAlias = Callable[[pd.DataFrame, RunRecord], str]
"""A function from the latency table and the record to the text of ``latency.md``."""


@dataclass
class RunDirectory:
    """A ``RunDirectory`` is a run on disk. Make one with ``create``, ``resume`` or ``open``.

    ``record`` is what ``finish`` writes to ``run.json``. It may be added to while the run goes on.
    ``tables`` are what the files held when they were opened or last written. Every one was checked
    whole, once, and is not read again.
    """

    path: Path
    record: RunRecord = field(repr=False)
    tables: Tables = field(default_factory=Tables, repr=False)

    @classmethod
    def check(cls, path: Path, *, resume: bool) -> None:
        """Refuse early, before a model is loaded, what ``create`` or ``resume`` would refuse.

        Raise ``RunDirectoryError``.
        """
        if resume and cls.open(path).record.complete:
            raise RunDirectoryError(f"--resume: {path} is complete. Nothing is left to measure")
        if not resume:
            hint = "Choose another, or go on with an unfinished run with --resume"
            check_new_folder("--output", path, hint)

    @classmethod
    def create(cls, path: Path, record: RunRecord) -> Self:
        """Create a run with nothing measured yet.

        Raise ``RunDirectoryError`` if ``path`` holds anything or cannot be written, or if
        ``record`` could not be read back.
        """
        cls.check(path, resume=False)
        RunRecord.from_json(record.to_json(), path / RECORD_FILE)
        directory = cls(path, record)
        try:
            path.mkdir(parents=True, exist_ok=True)
            directory._write_empty()
        except OSError as error:
            raise RunDirectoryError(f"--output {path}: {error.strerror}") from error
        return directory

    @classmethod
    def resume(cls, path: Path, record: RunRecord) -> Self:
        """Open the unfinished run in ``path`` to go on with it.

        It keeps the record it began with. The time of this resume is added, and what was finished
        by then. Raise ``RunDirectoryError``, which names what differs, if its arguments, machine or
        model are not those of ``record``. Raise it too if a file is missing or damaged.
        """
        directory = cls.open(path)
        asked = RunRecord.from_json(record.to_json(), path)
        if others := differing(directory.record, asked):
            raise RunDirectoryError(
                f"--resume: {path / RECORD_FILE} was begun with another {', '.join(others)}. "
                "Give the same, or choose another --output"
            )
        kept = sorted(directory.finished_batch_sizes)
        directory.record.add_resumed({"utc": record.created_utc, "kept_batch_sizes": kept})
        directory._write_record()
        return directory

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the run in ``path``, finished or not. All its files are read and checked, once.

        Raise ``RunDirectoryError``, which names the file, if one is missing or damaged, or holds
        what no run writes.
        """
        record, tables = read_run(path)
        return cls(path, record, tables)

    @property
    def finished_batch_sizes(self) -> set[int]:
        """Return the batch sizes whose group is on disk."""
        return set(self.tables.latency["batch_size"].tolist())

    def latency(self) -> pd.DataFrame:
        """Return one row a measured cell, in the order measured (``LATENCY``)."""
        return self.tables.latency.copy()

    def capture(self) -> pd.DataFrame:
        """Return one row a captured graph (``CAPTURE``)."""
        return self.tables.capture.copy()

    def acceptance(self) -> pd.DataFrame:
        """Return the raw acceptance counts of the finished groups (``ACCEPTANCE``)."""
        return self.tables.acceptance.copy()

    def samples(self) -> pd.DataFrame:
        """Return the raw samples of the finished groups, in seconds (``SAMPLES``)."""
        return self.tables.samples.copy()

    def blocks(self) -> pd.DataFrame:
        """Return every timed block of the finished groups, kept or not (``BLOCKS``). A thin
        directory has none, and neither has one from before there was telemetry.
        """
        return self.tables.blocks.copy()

    def tokens(self) -> list[SavedTokens]:
        """Return the lines of the finished groups' ``tokens.jsonl``, none if tokens were
        not saved.
        """
        return [*self.tables.tokens]

    def write_group(
        self,
        cells: Sequence[Cell],
        samples: Sequence[Sample],
        tokens: Sequence[TokenRow] = (),
        blocks: Sequence[Block] = (),
    ) -> pd.DataFrame:
        """Add one batch size, with all its scopes and k, and return its rows of ``latency.csv``.
        That file is written last and makes it finished.
        """
        new_samples = samples_frame(samples)
        new = with_floor_verdicts(latency_frame(cells, new_samples), self.record)
        assert new["batch_size"].nunique() == 1
        assert self.finished_batch_sizes.isdisjoint(new["batch_size"])
        old = self.tables
        latency = _appended(old.latency, new)
        self._write_samples(_appended(old.samples, new_samples))
        self._write_csv(ACCEPTANCE_FILE, _appended(old.acceptance, acceptance_frame(cells)))
        self._write_csv(BLOCKS_FILE, _appended(old.blocks, typed_frame(blocks, BLOCKS)))
        if tokens:
            self._write_tokens([*old.tokens, *(cast(SavedTokens, row._asdict()) for row in tokens)])
        self._write_record()
        self._write_csv(CAPTURE_FILE, with_break_even(old.capture, latency))
        self._write_csv(LATENCY_FILE, latency)
        self._reread()
        return new

    def write_capture(self, costs: Sequence[GraphCost]) -> None:
        """Replace ``capture.csv`` and write the record, which by now holds the dummy run.

        Each group written later fills in what its buckets gain.
        """
        self._write_csv(CAPTURE_FILE, capture_frame(costs, self.tables.latency))
        self._write_record()
        self._reread()

    def write_merged(self, tables: Tables) -> None:
        """Write every group at once, as ``merge_runs`` has them. A second call after a kill writes
        them again.
        """
        self._write_samples(tables.samples)
        self._write_csv(ACCEPTANCE_FILE, tables.acceptance)
        self._write_csv(BLOCKS_FILE, tables.blocks)
        if tables.tokens:
            self._write_tokens(tables.tokens)
        self._write_csv(CAPTURE_FILE, with_break_even(tables.capture, tables.latency))
        self._write_csv(LATENCY_FILE, tables.latency)
        self._reread()

    def finish(self, to_markdown: ToMarkdown, *, is_complete: bool = True) -> pd.DataFrame:
        """Write ``latency.md`` and then a ``run.json`` that is complete, and return ``latency``.

        ``is_complete`` false leaves a run that lacks cells as it is: not complete.
        """
        latency = self.latency()
        self.record.telemetry = telemetry_summary(self.tables.blocks)
        self._write_text(MARKDOWN_FILE, to_markdown(latency, self.record))
        self.record.complete = is_complete
        self._write_record()
        return latency

    def _write_empty(self) -> None:
        """Write every file with no rows, so that one that is missing later must have been lost."""
        self._write_samples(typed_frame([], SAMPLES))
        self._write_csv(ACCEPTANCE_FILE, typed_frame([], ACCEPTANCE))
        self._write_csv(BLOCKS_FILE, typed_frame([], BLOCKS))
        self._write_csv(CAPTURE_FILE, typed_frame([], CAPTURE))
        self._write_csv(LATENCY_FILE, typed_frame([], LATENCY))
        self._write_record()

    def _reread(self) -> None:
        """Read back what was written, rounded and checked, as the next one to open it does."""
        self.tables = Tables.read(self.path, self.record)

    def _write_record(self) -> None:
        self._write_text(RECORD_FILE, self.record.to_json())

    def _write_samples(self, frame: pd.DataFrame) -> None:
        self._write(SAMPLES_FILE, lambda file: write_parquet(frame, file))

    def _write_csv(self, name: str, frame: pd.DataFrame) -> None:
        self._write(
            name, lambda file: frame.to_csv(file, index=False, float_format=SIGNIFICANT_DIGITS)
        )

    def _write_tokens(self, rows: list[SavedTokens]) -> None:
        self._write_text(TOKENS_FILE, "".join(json.dumps(row) + "\n" for row in rows))

    def _write_text(self, name: str, text: str) -> None:
        self._write(name, lambda file: file.write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        aside = self.path / f"{name}.tmp"
        write(aside)
        os.replace(aside, self.path / name)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep other processes from going on with the run in ``path`` meanwhile. A process that is
    killed lets go.

    Raise ``RunDirectoryError`` if another process is writing it.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        # A file system without such locks is used without one.
        with suppress(OSError):
            _lock(folder, path)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, path: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunDirectoryError(
            f"--output {path}: another process is writing it. Wait for it, or end it"
        ) from error


def _appended(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([old, new], ignore_index=True)
