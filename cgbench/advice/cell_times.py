"""Collect what each cell of one or more runs took, by context, batch size and k.

The time is the wall time of an iteration. All k of one batch size are measured in turns, so two of
them are compared round by round.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from cgbench.errors import BadInputError, CannotError
from cgbench.rundir.block_times import WALL, block_times
from cgbench.rundir.schema import LATENCY_KEY
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import CELL
from cgbench.statistics import (
    Estimate,
    Floats,
    blocks_estimate,
    difference,
    processes_estimate,
)
from cgbench.words import Mode, Scope, StageKind, Status

ONE_MACHINE = ("gpu", "cpu", "torch", "cgbench_commit")
"""Runs must agree in these fields of their record, because their times are compared."""

MADE_BY_K = ("head", "mtp_modules", "draft_vocab", "acceptance")
"""These settings differ between k = 0 and the rest, or no time depends on them."""

MIN_PAIRS = 3


Ints = npt.NDArray[np.int64]


class At(NamedTuple):
    """An ``At`` names a cell by its KV rows a request when timing starts, its requests and its
    drafts.
    """

    context_len: int
    batch_size: int
    spec_tokens: int


class Group(NamedTuple):
    """A ``Group`` names the cells of one context and batch size, which differ in k alone."""

    context_len: int
    batch_size: int


@dataclass(frozen=True, eq=False)
class CellTime:
    """A ``CellTime`` holds the seconds of one cell, ``blocks`` indexed by process and block.

    ``run`` is the number of its run. ``bucket`` is how many requests its graph holds, and the batch
    size if it ran eager. A cell of a scope with graphs is eager above its largest bucket.
    """

    at: At
    run: int
    mode: Mode
    bucket: int
    blocks: "pd.Series[float]"

    @cached_property
    def log_estimate(self) -> Estimate:
        """Return an estimate of the logarithm of the seconds."""
        return _estimate(self.processes, self.logs)

    @cached_property
    def logs(self) -> Floats:
        """Return the logarithm of each block's seconds."""
        return np.log(np.asarray(self.blocks, dtype=np.float64))

    @cached_property
    def processes(self) -> Ints:
        """Return the process of each block."""
        return np.asarray(self.blocks.index.get_level_values("process"), dtype=np.int64)

    @property
    def seconds(self) -> float:
        """Return the seconds of an iteration of this cell."""
        return float(np.exp(self.log_estimate.value))


@dataclass(frozen=True)
class MeasuredTimes:
    """A ``MeasuredTimes`` holds the cells of runs that can stand in one table, all of one scope."""

    scope: Scope
    cells: dict[At, CellTime]
    left_out: tuple[str, ...]
    """It holds a line for each cell that its status keeps out."""

    @property
    def contexts(self) -> list[int]:
        """Return the context lengths of all cells, ascending."""
        return sorted({at.context_len for at in self.cells})

    def batch_sizes(self, context_len: int) -> list[int]:
        """Return the batch sizes of the cells at one context, ascending."""
        return sorted({at.batch_size for at in self.cells if at.context_len == context_len})

    @property
    def groups(self) -> list[Group]:
        """Return the context and batch size of all cells, each pair once and ascending."""
        return sorted({Group(at.context_len, at.batch_size) for at in self.cells})

    @property
    def lengths(self) -> list[int]:
        """Return every k of any cell, ascending."""
        return sorted({at.spec_tokens for at in self.cells})

    def of_group(self, group: Group) -> dict[int, CellTime]:
        """Return the cells of one group by k, ascending."""
        found = ((k, self.cells.get(At(*group, k))) for k in self.lengths)
        return {k: cell for k, cell in found if cell is not None}


def measured_times(runs: Sequence[RunDirectory]) -> MeasuredTimes:
    """Return the times of ``runs``, in the scope that all of them have and that holds most graphs.

    Raise ``CannotError`` if runs are of two models, machines or settings. Raise ``BadInputError``
    if a cell is in two of them, if they share no scope, or if none has a time.
    """
    _check_alike(runs)
    scope = _scope(runs)
    cells: dict[At, CellTime] = {}
    left_out: list[str] = []
    for number, run in enumerate(runs):
        for cell in _cells(run, number, scope, left_out):
            if cell.at in cells:
                raise BadInputError(
                    f"{run.path}: k={cell.at.spec_tokens}, batch size {cell.at.batch_size} at "
                    f"context {cell.at.context_len} is in {runs[cells[cell.at].run].path} too"
                )
            cells[cell.at] = cell
    if not cells:
        raise BadInputError(_without_times(runs, scope))
    return MeasuredTimes(scope, cells, tuple(left_out))


def _without_times(runs: Sequence[RunDirectory], scope: Scope) -> str:
    """Return why no cell has a time, in words."""
    rows = pd.concat([run.tables.latency for run in runs])
    statuses = rows[rows["scope"] == scope.value]["status"].value_counts()
    bad = [f"{count} are {status}" for status, count in statuses.items() if status != Status.OK]
    why = f"of scope {scope}, {', '.join(bad)}" if bad else f"no sample is of scope {scope}"
    return f"{runs[0].path}: no cell has a time to read: {why}"


def log_ratio(over: CellTime, under: CellTime) -> Estimate:
    """Estimate the logarithm of ``over`` / ``under``.

    The two are compared by the rounds that both have. With fewer than three such rounds they count
    as independent.
    """
    if over.run == under.run:
        if over.blocks.index.equals(under.blocks.index) and len(over.blocks) >= MIN_PAIRS:
            return _estimate(over.processes, over.logs - under.logs)
        both = over.blocks.index.intersection(under.blocks.index).sort_values()
        if len(both) >= MIN_PAIRS:
            ours, theirs = (
                cell.logs[cell.blocks.index.get_indexer(both)] for cell in (over, under)
            )
            processes = np.asarray(both.get_level_values("process"), dtype=np.int64)
            return _estimate(processes, ours - theirs)
    return difference(over.log_estimate, under.log_estimate)


def _estimate(processes: Ints, logs: Floats) -> Estimate:
    """Estimate the centre of the ``logs`` of blocks in their order.

    With several processes, a process is the unit of evidence.
    """
    each = np.unique(processes)
    if len(each) > 1:
        return processes_estimate(np.array([np.median(logs[processes == one]) for one in each]))
    return blocks_estimate(logs)


def _scope(runs: Sequence[RunDirectory]) -> Scope:
    """Return the scope to compare in: iteration if every run has it, else phase, else eager."""
    for run in runs:
        if run.tables.latency.empty:
            raise BadInputError(f"{run.path}: latency.csv has no cell")
    shared = set.intersection(*(set(run.tables.latency["scope"].tolist()) for run in runs))
    for scope in (Scope.ITERATION, Scope.PHASE, Scope.EAGER):
        if scope.value in shared:
            return scope
    raise BadInputError(f"{runs[0].path}: latency.csv shares no scope with the other runs")


def _cells(run: RunDirectory, number: int, scope: Scope, left_out: list[str]) -> Iterator[CellTime]:
    seconds = _seconds(run, scope)
    latency = run.tables.latency
    for row in latency[latency["scope"] == scope.value].astype(object).to_dict("records"):
        at = At(row["context_len"], row["batch_size"], row["spec_tokens"])
        if row["status"] != Status.OK.value:
            left_out.append(
                f"left out: k={at.spec_tokens}, batch size {at.batch_size} at context "
                f"{at.context_len} is {row['status']}"
            )
            continue
        bucket = at.batch_size if pd.isna(row["bucket"]) else int(row["bucket"])
        key = (scope.value, at.spec_tokens, at.batch_size)
        if key in seconds:
            yield CellTime(at, number, Mode(row["mode"]), bucket, seconds[key])


def _seconds(run: RunDirectory, scope: Scope) -> "dict[Any, pd.Series[float]]":
    """Return the wall seconds of each block by cell of ``scope``.

    If each iteration flushed the cache, they are the device's seconds instead.
    """
    samples = run.tables.samples
    times = block_times(samples[samples["scope"] == scope.value])
    seconds = times[WALL].fillna(times[StageKind.ITERATION.value]).dropna().sort_index()
    index: pd.MultiIndex = cast("pd.MultiIndex", seconds.index)
    blocks = index.droplevel([*CELL])
    return {
        cell: seconds.iloc[places].set_axis(blocks[places])
        for cell, places in seconds.groupby(CELL).indices.items()
    }


def _check_alike(runs: Sequence[RunDirectory]) -> None:
    first = runs[0]
    for other in runs[1:]:
        for name in _differing(first, other):
            raise CannotError(
                f"{other.path} has another {name} than {first.path}: they make no one table"
            )


def _differing(first: RunDirectory, other: RunDirectory) -> Iterable[str]:
    ours, theirs = first.record, other.record
    if ours.model["fingerprint"] != theirs.model["fingerprint"]:
        yield "model"
    yield from (n for n in ONE_MACHINE if ours.environment.get(n) != theirs.environment.get(n))
    apart = {"scope", "spec_tokens", "batch_size", "context_len", *MADE_BY_K}
    for name in LATENCY_KEY:
        if name not in apart and _values(first, name) != _values(other, name):
            yield name


def _values(run: RunDirectory, name: str) -> set[object]:
    return set(run.tables.latency[name].tolist())
