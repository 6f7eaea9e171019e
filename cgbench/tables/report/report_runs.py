"""Hold runs as a report shows them: each with a short name, and their rows in one frame."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from cgbench.rundir.store import RunDirectory
from cgbench.words import Mode, Scope, Status

SHOWN = (Status.OK.value, Status.DISTURBED.value)
"""Rows whose times are drawn. The others are in the tables alone."""


@dataclass(frozen=True)
class ReportRuns:
    """A ``ReportRuns`` holds runs and their names. ``names`` are those of the folders. Folders that
    share a name have the whole path.
    """

    runs: tuple[RunDirectory, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[RunDirectory]) -> "ReportRuns":
        """Name the runs after their folders."""
        last = [run.path.resolve().name for run in runs]
        seen = Counter(last)
        names = [
            name if seen[name] == 1 else str(run.path) for name, run in zip(last, runs, strict=True)
        ]
        return cls(tuple(runs), tuple(names))

    def __iter__(self) -> Iterator[tuple[str, RunDirectory]]:
        return iter(zip(self.names, self.runs, strict=True))

    @property
    def is_one(self) -> bool:
        """Return whether there is only one run."""
        return len(self.runs) == 1

    @cached_property
    def latency(self) -> pd.DataFrame:
        """Return every row, with the run's name in column ``run``."""
        frames = [run.tables.latency.assign(run=name) for name, run in self]
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def drawn(self) -> pd.DataFrame:
        """Return the rows whose times can be drawn, ascending in k and batch size."""
        rows = self.latency
        has_time = rows["iteration_p50_ms"].notna() & rows["status"].isin(SHOWN)
        return rows[has_time].sort_values(["spec_tokens", "batch_size"], kind="stable")

    def best_scope(self, name: str) -> str:
        """Return the scope of a run that holds most in a graph."""
        measured = set(self.drawn[self.drawn["run"] == name]["scope"])
        order = (Scope.ITERATION, Scope.PHASE, Scope.EAGER)
        return next((scope.value for scope in order if scope.value in measured), "eager")

    @cached_property
    def best(self) -> pd.DataFrame:
        """Return the drawn rows of each run's best scope."""
        parts = [
            self.drawn[(self.drawn["run"] == name) & (self.drawn["scope"] == self.best_scope(name))]
            for name in self.names
        ]
        return pd.concat(parts, ignore_index=True)

    def label(self, name: str, text: str) -> str:
        """Return the name of a line. It has the run's name only if there are several runs."""
        return text if self.is_one else f"{name}, {text}"


def marks(run: RunDirectory) -> Iterator[str]:
    """Yield what a reader has to know before the numbers: what is random, stated or drawn."""
    if run.record.model.get("random_weights"):
        yield "random weights"
    rules = run.tables.latency["acceptance"].unique().tolist()
    stated = [rule for rule in rules if rule.partition(":")[0] not in ("greedy", "sampled")]
    yield from (f"acceptance is not measured: {rule}" for rule in stated)
    if "balanced" in run.tables.latency["routing"].tolist():
        yield "experts are drawn evenly, not by the router"
    if not run.record.complete:
        yield "not finished"


def ran_eager(rows: pd.DataFrame) -> pd.Series:
    """Return which rows of a graph scope ran without a graph."""
    return (rows["mode"] == Mode.EAGER.value) & (rows["scope"] != Scope.EAGER.value)
