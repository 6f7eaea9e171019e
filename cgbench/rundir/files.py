"""Read the files of a run directory, once and only if they are whole.

``read_run`` is the one way in. What it gives has been checked whole: every type, sign, range and
key, and that the files agree with each other.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import pandas as pd

from cgbench.errors import RunDirectoryError
from cgbench.inputs import check_file, read_text
from cgbench.rundir.block_schema import BLOCKS
from cgbench.rundir.csv_text import parse_csv
from cgbench.rundir.parquet_file import parse_parquet
from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import ACCEPTANCE, CAPTURE, LATENCY, SAMPLES, Column
from cgbench.rundir.soundness import cell_faults, length_faults, table_faults
from cgbench.rundir.summary import typed_frame, with_defaults
from cgbench.rundir.token_file import SavedTokens, parse_tokens

RECORD_FILE = "run.json"
LATENCY_FILE = "latency.csv"
CAPTURE_FILE = "capture.csv"
SAMPLES_FILE = "samples.parquet"
BLOCKS_FILE = "blocks.csv"
ACCEPTANCE_FILE = "acceptance.csv"
TOKENS_FILE = "tokens.jsonl"
MARKDOWN_FILE = "latency.md"

MAX_RECORD_BYTES = 16_000_000
MAX_TABLE_BYTES = 256_000_000
MAX_BYTES = 4_000_000_000
"""The most bytes of samples and of tokens. A larger file is not one of ours, and reading it would
not end.
"""

_T = TypeVar("_T")


def _no_rows(columns: Sequence[Column]) -> Callable[[], pd.DataFrame]:
    return lambda: typed_frame([], columns)


@dataclass(frozen=True, slots=True)
class Tables:
    """A ``Tables`` holds the tables of a run, with rows of finished groups alone. They must not be
    written to.

    ``tokens`` are the lines of ``tokens.jsonl``, none if tokens were not saved.
    """

    latency: pd.DataFrame = field(default_factory=_no_rows(LATENCY))
    capture: pd.DataFrame = field(default_factory=_no_rows(CAPTURE))
    acceptance: pd.DataFrame = field(default_factory=_no_rows(ACCEPTANCE))
    samples: pd.DataFrame = field(default_factory=_no_rows(SAMPLES))
    blocks: pd.DataFrame = field(default_factory=_no_rows(BLOCKS))
    tokens: list[SavedTokens] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, record: RunRecord) -> Self:
        """Return the tables of the run in ``path``, whose ``run.json`` is ``record``.

        Raise ``RunDirectoryError``, which names the file, if one is missing or damaged, or holds
        what no run writes.
        """
        latency = _csv(path / LATENCY_FILE, LATENCY)
        _check_label(path / LATENCY_FILE, latency, record)
        finished = set(latency["batch_size"].tolist())

        def of_groups(name: str, frame: pd.DataFrame) -> pd.DataFrame:
            rows = frame[frame["batch_size"].isin(finished)].reset_index(drop=True)
            _refuse(path / name, cell_faults(rows, latency))
            return rows

        acceptance = of_groups(ACCEPTANCE_FILE, _csv(path / ACCEPTANCE_FILE, ACCEPTANCE))
        _refuse(path / ACCEPTANCE_FILE, length_faults(acceptance, latency))
        return cls(
            latency=latency,
            capture=_csv(path / CAPTURE_FILE, CAPTURE),
            acceptance=acceptance,
            samples=of_groups(SAMPLES_FILE, _parquet(path / SAMPLES_FILE, SAMPLES)),
            blocks=of_groups(BLOCKS_FILE, _blocks(path / BLOCKS_FILE)),
            tokens=_tokens(path / TOKENS_FILE, latency),
        )


def read_run(path: Path) -> tuple[RunRecord, Tables]:
    """Return the record and the tables of the run in ``path``. Each file is read once.

    Raise ``RunDirectoryError``, which names the file, if one is missing or damaged, or holds what
    no run writes.
    """
    record = _record(path / RECORD_FILE)
    return record, Tables.read(path, record)


def check_is_file(file: Path) -> None:
    """Refuse what is no regular file, which might never end, and what is too large to be ours.

    Raise ``RunDirectoryError``.
    """
    check_file(_damaged(file), file, MAX_BYTES, RunDirectoryError)


def _record(file: Path) -> RunRecord:
    return RunRecord.from_json(_text(file, MAX_RECORD_BYTES), file)


def _text(file: Path, most_bytes: int) -> str:
    return read_text(_damaged(file), file, most_bytes, RunDirectoryError)


def _damaged(file: Path) -> str:
    """Return the beginning of an error line about a file that cannot be read."""
    return f"{file}: missing or damaged"


def _parsed(file: Path, parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except ValueError as error:
        raise RunDirectoryError(f"{file}: damaged: {error}") from error


def _refuse(file: Path, faults: Iterable[str]) -> None:
    for fault in faults:
        raise RunDirectoryError(f"{file}: damaged: {fault}")


def _csv(file: Path, columns: Sequence[Column]) -> pd.DataFrame:
    text = _text(file, MAX_TABLE_BYTES)
    return _checked(file, _parsed(file, lambda: parse_csv(text, columns)), columns)


def _parquet(file: Path, columns: Sequence[Column]) -> pd.DataFrame:
    check_is_file(file)
    try:
        frame = _parsed(file, lambda: parse_parquet(file, columns))
    except OSError as error:
        raise RunDirectoryError(f"{_damaged(file)}: {error.strerror or error}") from error
    return _checked(file, frame, columns)


def _checked(file: Path, frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    missing = [each for each in columns if each.added and each.name not in frame]
    frame = with_defaults(frame, missing)
    if list(frame.columns) != [column.name for column in columns]:
        raise RunDirectoryError(f"{file}: damaged: not the columns of this schema version")
    _refuse(file, table_faults(frame, columns))
    return frame


def _blocks(file: Path) -> pd.DataFrame:
    """Return the blocks. There are none in a thin directory, and in one from before there was
    telemetry.
    """
    return _csv(file, BLOCKS) if os.path.lexists(file) else typed_frame([], BLOCKS)


def _tokens(file: Path, latency: pd.DataFrame) -> list[SavedTokens]:
    if not os.path.lexists(file):
        return []
    text = _text(file, MAX_BYTES)
    finished = set(latency["batch_size"].tolist())
    rows = [
        row for row in _parsed(file, lambda: parse_tokens(text)) if row["batch_size"] in finished
    ]
    cells = pd.DataFrame(rows, columns=["scope", "spec_tokens", "batch_size", "mode", "request"])
    _refuse(file, cell_faults(cells, latency))
    if cells.duplicated().any():
        raise RunDirectoryError(f"{file}: damaged: a request is there twice")
    return rows


def _check_label(file: Path, latency: pd.DataFrame, record: RunRecord) -> None:
    for label in latency["model"].unique().tolist():
        if label != record.model["label"]:
            raise RunDirectoryError(
                f"{file}: damaged: model is {label}, and model.label in {RECORD_FILE} is "
                f"{record.model['label']}"
            )
