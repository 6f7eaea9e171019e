"""Read costs for the planner out of a run directory: what was measured, by bucket and by batch
size.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.errors import RunDirectoryError
from cgbench.planning import MAX_BATCH_SIZE, Costs, Curve
from cgbench.planning.costs import Drafts
from cgbench.planning.graph_memory import STATED, GraphMemory, LedgerRow, fitted
from cgbench.words import Mode, Phase, Scope, Status

if TYPE_CHECKING:
    import pandas as pd

_SIZES = (1, MAX_BATCH_SIZE)
_ITERATION_MS = (1e-6, 1e9)
_CAPTURE_S = (0, 1e9)
_BYTES = (-1e15, 1e15)
"""These ranges are what a measurement may give. They are far wider than any measurement needs, but
sums within them do not overflow.
"""

MILLISECONDS = ("warmup_ms", "capture_ms", "instantiate_ms", "first_replay_ms")


def read_costs(path: Path, spec_tokens: int) -> Costs:
    """Return iteration times, graph bytes and capture seconds of the run in ``path`` at one k.

    They are those of the whole iteration's graphs if the run has them. If not, they are those of
    the three phase graphs, taken together. A bucket's time is the median over the batch sizes
    measured in it, because the graph does the same work whatever it holds.

    Raise ``RunDirectoryError`` unless k was measured both captured and eager. Raise it too, with
    the file's name, if a file is missing or damaged, or has a number that no measurement gives.
    """
    from cgbench.rundir.files import CAPTURE_FILE, LATENCY_FILE
    from cgbench.rundir.store import RunDirectory

    run = RunDirectory.open(path)
    latency = run.latency()
    of_k = latency[(latency["spec_tokens"] == spec_tokens) & (latency["status"] == Status.OK)]
    graphs = of_k[of_k["mode"] == Mode.GRAPH]
    eager = of_k[(of_k["mode"] == Mode.EAGER) & (of_k["scope"] == Scope.EAGER)]
    scope = _scope(graphs)
    graphs = graphs[graphs["scope"] == scope]
    for found, what in ((graphs, "captured"), (eager, "eager")):
        if found.empty:
            raise RunDirectoryError(
                f"--costs {path}: latency.csv has no {what} iteration at --spec-tokens "
                f"{spec_tokens}. Measure it with cgbench run"
            )
    file = path / LATENCY_FILE
    _check(file, graphs, "bucket", _SIZES)
    _check(file, eager, "batch_size", _SIZES)
    for rows in (graphs, eager):
        _check(file, rows, "iteration_p50_ms", _ITERATION_MS)
    captured = _captured(run.capture(), scope, spec_tokens)
    _check(path / CAPTURE_FILE, captured, "bucket", _SIZES)
    _check(path / CAPTURE_FILE, captured, "seconds", _CAPTURE_S)
    return Costs(
        unit="ms",
        graph=_curve(graphs, "bucket", "iteration_p50_ms"),
        eager=_curve(eager, "batch_size", "iteration_p50_ms"),
        memory_bytes=None if captured.empty else _curve(captured, "bucket", "bytes"),
        capture_s=None if captured.empty else _curve(captured, "bucket", "seconds"),
        drafts=_drafts(graphs, eager),
        acceptance_length=_acceptance_length(graphs),
    )


def _acceptance_length(graphs: "pd.DataFrame") -> float | None:
    lengths = graphs["mean_acceptance_length"].astype("float64").dropna()
    return None if lengths.empty else float(lengths.median())


def _drafts(graphs: "pd.DataFrame", eager: "pd.DataFrame") -> Drafts | None:
    """Return the draft steps' part, if every row has it. It is from another pass than the
    iteration, so it is taken as a share of verify and drafts together.
    """
    parts = []
    for rows, by in ((graphs, "bucket"), (eager, "batch_size")):
        stages = rows[["verify_p50_ms", "draft_p50_ms"]].astype("float64")
        if not (stages > 0).all(axis=None):
            return None
        share = stages["draft_p50_ms"] / stages.sum(axis=1)
        parts.append(_curve(rows.assign(drafts=rows["iteration_p50_ms"] * share), by, "drafts"))
    return Drafts(*parts)


def read_graph_memory(path: Path) -> GraphMemory:
    """Return the memory of the run's own graphs, as a model for other lists.

    It is the stated model if the run captured nothing. Raise ``RunDirectoryError`` if its ledger is
    damaged.
    """
    rows = read_ledger(path)
    return fitted(rows, f"measured in {path}") if rows else STATED


def read_ledger(path: Path) -> list[LedgerRow]:
    """Return every captured graph of the run with what it took."""
    from cgbench.rundir.files import CAPTURE_FILE
    from cgbench.rundir.store import RunDirectory

    rows = RunDirectory.open(path).capture()
    for column in ("pool_bytes", "driver_bytes", "num_tokens"):
        _check(path / CAPTURE_FILE, rows, column, _BYTES)
    columns = ("phase", "spec_tokens", "num_tokens", "pool_bytes", "driver_bytes")
    values = zip(*(rows[name].tolist() for name in columns), strict=True)
    return [
        LedgerRow(Phase(phase), int(k), int(tokens), float(pool), float(driver))
        for phase, k, tokens, pool, driver in values
    ]


def _check(file: Path, rows: "pd.DataFrame", column: str, limits: tuple[float, float]) -> None:
    """Raise ``RunDirectoryError`` if a value is not a number within ``limits``."""
    least, most = limits
    values = rows[column].astype("float64")
    for value in values[~values.between(least, most)]:
        raise RunDirectoryError(
            f"{file}: damaged: {column} is {value:g}, must be a number from {least:g} to {most:g}"
        )


def _scope(graphs: "pd.DataFrame") -> Scope:
    is_whole = (graphs["scope"] == Scope.ITERATION).any()
    return Scope.ITERATION if is_whole else Scope.PHASE


def _captured(capture: "pd.DataFrame", scope: Scope, spec_tokens: int) -> "pd.DataFrame":
    """Return the bytes and seconds of each bucket, all its graphs together."""
    is_whole = capture["phase"] == Phase.ITERATION
    of_scope = is_whole if scope is Scope.ITERATION else ~is_whole
    rows = capture[of_scope & (capture["spec_tokens"] == spec_tokens)]
    costs = rows.assign(
        # These are floats, because whole numbers of 64 bits wrap if they are too large.
        bytes=(rows["pool_bytes"].astype("float64") + rows["driver_bytes"]).clip(lower=0),
        seconds=rows[list(MILLISECONDS)].sum(axis=1, skipna=False) / 1e3,
    )
    return costs.groupby("bucket", as_index=False)[["bytes", "seconds"]].agg(_whole_sum)


def _whole_sum(values: "pd.Series[float]") -> float:
    """Return the sum, which is NaN if one of the values is."""
    return float(values.sum(skipna=False))


def _curve(frame: "pd.DataFrame", by: str, value: str) -> Curve:
    medians = frame.groupby(by)[value].median()
    return Curve(tuple(zip(medians.index.astype(int).tolist(), medians.tolist(), strict=True)))
