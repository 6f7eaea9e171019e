"""The files of a run directory, read only where they are whole: columns, types, and words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from cgbench.errors import RunDirectoryError
from cgbench.report.block_schema import BLOCKS
from cgbench.report.record import RunRecord
from cgbench.report.schema import ACCEPTANCE, CAPTURE, LATENCY, LATENCY_KEY, SAMPLES, Column
from cgbench.report.summary import typed_frame, with_defaults

RECORD_FILE = "run.json"
LATENCY_FILE = "latency.csv"
CAPTURE_FILE = "capture.csv"
SAMPLES_FILE = "samples.parquet"
BLOCKS_FILE = "blocks.csv"
ACCEPTANCE_FILE = "acceptance.csv"
TOKENS_FILE = "tokens.jsonl"
MARKDOWN_FILE = "latency.md"

ROW_KEYS = {LATENCY: LATENCY_KEY, CAPTURE: ("phase", "spec_tokens", "bucket")}
"""What tells the rows of a table from each other, where rows are looked up by it."""


def _untimed_iterations(samples: pd.DataFrame) -> pd.Series:
    timed = samples[samples["stage"] == "iteration"]
    times = timed[["gpu_s", "wall_s"]].assign(wall_s=timed["wall_s"].fillna(timed["gpu_s"]))
    return ~((times > 0) & (times < inf)).all(axis=1)


IMPOSSIBLE: dict[Sequence[Column], tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    LATENCY: ("peak_memory_bytes is not above 0", lambda rows: rows["peak_memory_bytes"] <= 0),
    CAPTURE: (
        "a time is not above 0",
        lambda rows: ~(rows[["warmup_ms", "capture_ms", "instantiate_ms"]] > 0).all(axis=1),
    ),
    SAMPLES: ("the time of an iteration is not above 0 and finite", _untimed_iterations),
    ACCEPTANCE: (
        "accepted is not 0 to drafted",
        lambda rows: ~rows["accepted"].between(0, rows["drafted"]),
    ),
}
"""Which rows no measurement gives, and what is wrong with them: statistics would trip over them."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a run: rows of finished groups, as ``RunDirectory`` has them one by one."""

    latency: pd.DataFrame
    capture: pd.DataFrame
    acceptance: pd.DataFrame
    samples: pd.DataFrame
    blocks: pd.DataFrame


def read_record(path: Path) -> RunRecord:
    """The record of the run in ``path``.

    Raises ``RunDirectoryError``, naming the file, where it is missing or damaged.
    """
    file = path / RECORD_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error
    return RunRecord.from_json(text, file)


def read_tables(path: Path) -> Tables:
    """The tables of the run in ``path``, each file read once.

    Raises ``RunDirectoryError``, naming the file, where one is missing or damaged.
    """
    latency = read_csv(path / LATENCY_FILE, LATENCY)
    finished = set(latency["batch_size"].tolist())

    def of_groups(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["batch_size"].isin(finished)].reset_index(drop=True)

    has_blocks = (path / BLOCKS_FILE).exists()
    blocks = read_csv(path / BLOCKS_FILE, BLOCKS) if has_blocks else typed_frame([], BLOCKS)
    return Tables(
        latency=latency,
        capture=read_csv(path / CAPTURE_FILE, CAPTURE),
        acceptance=of_groups(read_csv(path / ACCEPTANCE_FILE, ACCEPTANCE)),
        samples=of_groups(read_parquet(path / SAMPLES_FILE, SAMPLES)),
        blocks=of_groups(blocks),
    )


def read_csv(file: Path, columns: Sequence[Column]) -> pd.DataFrame:
    """A table written by ``RunDirectory``.

    Raises ``RunDirectoryError``, naming ``file``, where it is missing, cut short or not ours.
    """
    return _read(file, columns, lambda: _parsed_csv(file, columns))


def read_parquet(file: Path, columns: Sequence[Column]) -> pd.DataFrame:
    """As ``read_csv``, of a Parquet file."""
    return _read(file, columns, lambda: pd.read_parquet(file))


def damaged(file: Path, error: Exception) -> RunDirectoryError:
    """``file`` could not be read, for ``error``."""
    # An OSError's own text would name the file a second time.
    reason = error.strerror if isinstance(error, OSError) else None
    first_line = (reason or str(error)).partition("\n")[0]
    return RunDirectoryError(f"{file}: missing or damaged: {first_line}")


def _parsed_csv(file: Path, columns: Sequence[Column]) -> pd.DataFrame:
    if not file.read_bytes().endswith(b"\n"):
        # Else the values cut off would be read as empty cells.
        raise RunDirectoryError(f"{file}: damaged: cut short, its last line has no end")
    # Only an empty cell is a missing one: "none" and "NA" are words that a label may hold.
    dtypes = {column.name: column.dtype for column in columns}
    return pd.read_csv(file, dtype=dtypes, keep_default_na=False, na_values=[""])


def _read(file: Path, columns: Sequence[Column], read: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    try:
        frame = read()
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise damaged(file, error) from error
    missing = [each for each in columns if each.added and each.name not in frame]
    frame = with_defaults(frame, missing)
    if list(frame.columns) != [column.name for column in columns]:
        raise RunDirectoryError(f"{file}: damaged: not the columns of this schema version")
    for column in columns:
        _check_words(file, frame, column)
        if column.dtype != "string" and not is_numeric_dtype(frame[column.name]):
            raise RunDirectoryError(f"{file}: damaged: {column.name} is not of numbers")
    if columns in ROW_KEYS and frame.duplicated([*ROW_KEYS[columns]]).any():
        raise RunDirectoryError(f"{file}: damaged: a row is there twice")
    if columns in IMPOSSIBLE:
        complaint, are_impossible = IMPOSSIBLE[columns]
        if are_impossible(frame).any():
            raise RunDirectoryError(f"{file}: damaged: {complaint}")
    return frame


def _check_words(file: Path, frame: pd.DataFrame, column: Column) -> None:
    if not column.words:
        return
    others = set(frame[column.name].unique()) - set(column.words)
    if others:
        raise RunDirectoryError(
            f"{file}: damaged: {column.name} is {', '.join(map(str, others))}; "
            f"must be {' or '.join(column.words)}"
        )
