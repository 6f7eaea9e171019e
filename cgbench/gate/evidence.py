"""Reduce a run directory to what a comparison rests on: one row for each cell and block."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias, TypedDict

import numpy as np
import pandas as pd

from cgbench.rundir.block_times import block_times
from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import LATENCY_KEY
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import CELL
from cgbench.statistics import Estimate, Floats, blocks_estimate, processes_estimate, repetition
from cgbench.words import Status

Key: TypeAlias = tuple[Any, ...]
"""The values of ``LATENCY_KEY``."""


class LinePlace(TypedDict, total=False):
    """A ``LinePlace`` names what a line or a question is about: a cell, a graph, or a k. It is
    empty for the whole run.
    """

    scope: str
    spec_tokens: int
    batch_size: int
    place: str


class Place(NamedTuple):
    """A ``Place`` names a cell within its run."""

    scope: str
    spec_tokens: int
    batch_size: int

    @property
    def where(self) -> LinePlace:
        """Return the place of the cell's lines."""
        return LinePlace(scope=self.scope, spec_tokens=self.spec_tokens, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """A ``MeasuredCell`` holds a row of ``latency.csv``, except the times, which
    ``Evidence.observed`` holds.
    """

    key: Key
    place: Place
    settings: dict[str, str]
    """``device`` and the columns of ``LATENCY_KEY``, as text."""
    mode: str
    bucket: int | None
    status: Status
    tokens_sha256: str | None
    peak_memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Observed:
    """An ``Observed`` holds one quantity of a cell: seconds ``values [n]``, one a block in the
    order measured.

    If a run has several processes, it holds one a process, because no block shows what differs
    between them.
    """

    values: Floats
    by_process: bool = False

    def log_estimate(self) -> Estimate:
        """Return an estimate of the logarithm, for ratios. Values are above 0."""
        logs = np.log(self.values)
        return processes_estimate(logs) if self.by_process else blocks_estimate(logs)

    @property
    def effective(self) -> float:
        """Return how many independent values these are worth. It is fewer than n if blocks drift,
        and at least 1.
        """
        n = len(self.values)
        return n if self.by_process else max(n / repetition(np.log(self.values)), 1.0)


@dataclass(frozen=True)
class Evidence:
    """An ``Evidence`` is one side of a comparison. ``name`` is BASE or NEW.

    ``observed`` is by place and column of ``block_times``, with nothing empty. ``counts`` holds
    (accepted, drafted) by place, a draft position each.
    """

    name: str
    path: Path
    record: RunRecord
    cells: dict[Key, MeasuredCell]
    observed: dict[tuple[Place, str], Observed]
    counts: dict[Place, list[tuple[int, int]]]
    capture: pd.DataFrame

    @classmethod
    def read(cls, name: str, path: Path) -> Self:
        """Return the evidence of the run in ``path``, full or thin.

        Raise ``RunDirectoryError``, which names the file, if one is missing or damaged.
        """
        return cls.of(name, RunDirectory.open(path))

    @classmethod
    def of(cls, name: str, run: RunDirectory) -> Self:
        """Return the evidence of a run that has been opened."""
        tables = run.tables
        cells = _cells(tables.latency)
        return cls(
            name=name,
            path=run.path,
            record=run.record,
            cells={cell.key: cell for cell in cells},
            observed=_by_cell(block_times(tables.samples)),
            counts=_counts(tables.acceptance),
            capture=tables.capture,
        )


def _by_cell(blocks: pd.DataFrame) -> dict[tuple[Place, str], Observed]:
    """Return ``blocks`` by cell and column. If there are several processes, each contributes the
    median of its blocks.
    """
    by_process = blocks.index.get_level_values("process").nunique() > 1
    if by_process:
        blocks = blocks.groupby([*CELL, "process"]).median()
    seconds = {str(column): values.to_numpy("float64") for column, values in blocks.items()}
    found = {
        (_place(key), column): values[rows][~np.isnan(values[rows])]
        for key, rows in blocks.groupby(CELL).indices.items()
        for column, values in seconds.items()
    }
    return {where: Observed(values, by_process) for where, values in found.items() if len(values)}


def _counts(acceptance: pd.DataFrame) -> dict[Place, list[tuple[int, int]]]:
    ordered = acceptance.sort_values("position")
    return {
        _place(key): list(zip(cell["accepted"].tolist(), cell["drafted"].tolist(), strict=True))
        for key, cell in ordered.groupby(CELL)
    }


def _place(key: Any) -> Place:
    """Return the place of a group, from its key as pandas gives it."""
    return Place(*key)


def _cells(latency: pd.DataFrame) -> Iterator[MeasuredCell]:
    for row in latency.astype(object).to_dict("records"):
        yield MeasuredCell(
            key=tuple(row[column] for column in LATENCY_KEY),
            place=Place(row["scope"], row["spec_tokens"], row["batch_size"]),
            settings={name: str(row[name]) for name in ("device", *LATENCY_KEY)},
            mode=row["mode"],
            bucket=_whole(row["bucket"]),
            status=Status(row["status"]),
            tokens_sha256=None if pd.isna(row["tokens_sha256"]) else row["tokens_sha256"],
            peak_memory_bytes=_whole(row["peak_memory_bytes"]),
        )


def _whole(value: Any) -> int | None:
    """Return the value as an integer, or None for an empty cell."""
    return None if pd.isna(value) else int(value)
