"""A run directory reduced to what a comparison rests on: one row a cell and block."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias, cast

import numpy as np
import pandas as pd

from cgbench.rundir.block_times import block_times
from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import LATENCY_KEY
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import CELL
from cgbench.statistics import Estimate, Floats, blocks_estimate, processes_estimate, repetition

Key: TypeAlias = tuple[Any, ...]
"""The values of ``LATENCY_KEY``."""

Row: TypeAlias = dict[str, Any]


class Place(NamedTuple):
    """A cell within its run."""

    scope: str
    spec_tokens: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Observed:
    """One quantity of a cell: seconds ``values [n]``, one a block in the order measured; one a
    process where the run has several, for what differs between processes no block can tell."""

    values: Floats
    by_process: bool = False

    def log_estimate(self) -> Estimate:
        """Of the logarithm, for ratios; values are above 0."""
        logs = np.log(self.values)
        return processes_estimate(logs) if self.by_process else blocks_estimate(logs)

    @property
    def effective(self) -> float:
        """How many independent values tell as much: fewer than n where blocks drift, at least 1."""
        n = len(self.values)
        return n if self.by_process else max(n / repetition(np.log(self.values)), 1.0)


@dataclass(frozen=True)
class Evidence:
    """One side of a comparison. ``name`` is BASE or NEW.

    ``observed`` is by place and column of ``block_times``, with nothing empty;
    ``counts`` holds (accepted, drafted) by place, a draft position each.
    """

    name: str
    path: Path
    record: RunRecord
    cells: dict[Key, Row]
    observed: dict[tuple[Place, str], Observed]
    counts: dict[Place, list[tuple[int, int]]]
    capture: pd.DataFrame

    @classmethod
    def read(cls, name: str, path: Path) -> Self:
        """The run in ``path``, full or thin.

        Raises ``RunDirectoryError``, naming the file, where one is missing or damaged.
        """
        return cls.of(name, RunDirectory.open(path))

    @classmethod
    def of(cls, name: str, run: RunDirectory) -> Self:
        """A run that has been opened."""
        tables = run.tables
        rows = cast(list[Row], tables.latency.astype(object).to_dict("records"))
        return cls(
            name=name,
            path=run.path,
            record=run.record,
            cells={tuple(row[column] for column in LATENCY_KEY): row for row in rows},
            observed=_by_cell(block_times(tables.samples)),
            counts=_counts(tables.acceptance),
            capture=tables.capture,
        )


def _by_cell(blocks: pd.DataFrame) -> dict[tuple[Place, str], Observed]:
    """``blocks`` apart by cell and column, drawn together by process where there are several."""
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
    """A group's key as pandas gives it."""
    return Place(*key)


def place_of(row: Row) -> Place:
    """Where a latency row stands within its run."""
    return Place(row["scope"], row["spec_tokens"], row["batch_size"])
