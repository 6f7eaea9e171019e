"""Explain why an iteration is slow, by rules over a run's tables, each with its loss and its flag.

A rule looks at one cell and names one loss in milliseconds. It reports nothing if the run does not
hold what it needs, so nothing here is a guess.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import pandas as pd

from cgbench.floor.account import Account
from cgbench.rundir.record_parts import PlanFacts
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import GRAPHS, with_costs
from cgbench.words import Mode, Scope, Stage, Status

MAX_SENTENCES = 3

LEAST_SHARE = 0.02
"""A loss is worth a sentence if it is at least this share of an iteration."""

NODE_S = 0.9e-6
"""A graph node takes at least this many seconds, as measured on an H200 with empty kernels."""

Row = Mapping[Hashable, Any]


@dataclass(frozen=True, slots=True)
class Loss:
    """A ``Loss`` is what one cell loses to one cause. ``share`` is of its iteration."""

    rule: str
    milliseconds: float
    share: float
    sentence: str


@dataclass(frozen=True)
class _Run:
    """A ``_Run`` holds what rules look at: rows with a time, and what else the run recorded."""

    rows: list[Row]
    nodes: dict[tuple[str, int, int], int]
    """It counts the nodes of all graphs of an iteration, by scope, k and bucket."""
    accounts: dict[tuple[int, int], Account]
    """They are kept by k and batch size."""
    plans: dict[int, PlanFacts]
    """They are kept by k."""
    read_bytes_per_s: float | None

    def rows_like(self, row: Row, *names: str) -> Iterator[Row]:
        """Yield the rows that agree with ``row`` in the columns ``names``."""
        return (each for each in self.rows if all(each[name] == row[name] for name in names))


Rule = Callable[[_Run, Row], tuple[float, str] | None]
"""A rule returns a cell's loss in milliseconds, and the sentence about it without its place."""


def slow_reasons(run: RunDirectory) -> list[Loss]:
    """Return the largest losses, three at most, of the cells in the scope with most graphs.

    Each rule reports the cell that loses the largest share of its iteration.
    """
    facts = _facts(run)
    scope = _scope(facts.rows)
    cells = [row for row in facts.rows if row["scope"] == scope]
    worst = (
        max(_losses(name, rule, facts, cells), key=lambda loss: loss.share, default=None)
        for name, rule in RULES.items()
    )
    told = [loss for loss in worst if loss is not None and loss.share >= LEAST_SHARE]
    return sorted(told, key=lambda loss: -loss.share)[:MAX_SENTENCES]


def reason_lines(run: RunDirectory) -> list[str]:
    """Return the sentences on the largest losses, as they are printed."""
    return [f"slow: {loss.sentence}" for loss in slow_reasons(run)]


def _losses(name: str, rule: Rule, facts: _Run, cells: list[Row]) -> Iterator[Loss]:
    for row in cells:
        found = rule(facts, row)
        if found is not None and found[0] > 0:
            lost, why = found
            place = f"batch size {row['batch_size']}, k = {row['spec_tokens']}"
            taken = row["iteration_p50_ms"]
            sentence = f"{lost:.3g} of {taken:.3g} ms at {place}: {why}"
            yield Loss(name, lost, lost / taken, sentence)


def _eager_batch(facts: _Run, row: Row) -> tuple[float, str] | None:
    """Compare a batch above the largest bucket with the replays of one bucket that take least.

    A graph of the whole batch takes no longer than as many replays as hold it, so the loss is not
    overstated.
    """
    if row["mode"] != Mode.EAGER or row["scope"] == Scope.EAGER:
        return None
    size = row["batch_size"]
    ways = [
        (-(-size // int(each["bucket"])) * each["iteration_p50_ms"], int(each["bucket"]))
        for each in _graphs(facts.rows_like(row, "scope", "spec_tokens"))
    ]
    if not ways:
        return None
    replays_ms, bucket = min(ways)
    replays = -(-size // bucket)
    largest, cure = bucket, f"--max-num-seqs {size}"
    if plan := facts.plans.get(row["spec_tokens"]):
        largest = max(plan["batch_sizes"], default=bucket)
        if size <= plan.get("max_batch_size", 0):
            # The policy's own ceiling left it out.
            cure = f"{size} among --capture-sizes"
    return row["iteration_p50_ms"] - replays_ms, (
        f"it runs without a graph, because the largest bucket holds {largest} requests. "
        f"{replays} replays of {bucket} take {replays_ms:.3g} ms. {cure} captures one"
    )


def _padding(facts: _Run, row: Row) -> tuple[float, str] | None:
    """Estimate what the bucket takes over a graph of just the batch, by the buckets around it."""
    if row["mode"] != Mode.GRAPH or row["bucket"] == row["batch_size"]:
        return None
    by_bucket = {
        int(each["bucket"]): each["iteration_p50_ms"]
        for each in _graphs(facts.rows_like(row, "scope", "spec_tokens"))
    }
    size, bucket = row["batch_size"], int(row["bucket"])
    below = max((each for each in by_bucket if each <= size), default=None)
    if below is None:
        return None
    low, high = by_bucket[below], row["iteration_p50_ms"]
    exact = low + (high - low) * (size - below) / (bucket - below)
    return high - exact, (
        f"its bucket holds {bucket} requests, so {row['padding_frac']:.0%} of the rows are "
        f"padding. {size} among --capture-sizes removes it"
    )


def _host_gap(facts: _Run, row: Row) -> tuple[float, str] | None:
    """Report where the host makes the GPU wait between iterations, and a wider scope does not."""
    gap = row["host_gap_p50_ms"]
    if row["scope"] != Scope.PHASE or not gap > 0:
        return None
    return gap, "the GPU waits for the host between iterations. --scopes iteration shortens that"


def _launches(facts: _Run, row: Row) -> tuple[float, str] | None:
    """Report what many small kernels take at the least, as far as it is above the floor.

    What else is above the floor may have other causes, so it is not counted.
    """
    nodes = facts.nodes.get(_graph_key(row)) if row["mode"] == Mode.GRAPH else None
    if row["compile"] != "off" or row["device"] != "cuda" or nodes is None:
        return None
    has_floor = not pd.isna(row["floor_ms"])
    over_ms = row["iteration_p50_ms"] - row["floor_ms"] if has_floor else inf
    above = f", and the floor is {row['floor_ms']:.3g} ms" if has_floor else ""
    return min(nodes * NODE_S * 1e3, over_ms), (
        f"{nodes:,} kernels run one after another, which take {NODE_S * 1e6:g} us each at the "
        f"least{above}. --compile default fuses them"
    )


def _experts(facts: _Run, row: Row) -> tuple[float, str] | None:
    """Report what the experts that k more tokens a request choose take to read."""
    ours, none = (facts.accounts.get((k, row["batch_size"])) for k in (row["spec_tokens"], 0))
    if not (row["spec_tokens"] and ours and none):
        return None
    read, before = _most_experts(ours), _most_experts(none)
    if read is None or before is None:
        return None
    return (_expert_seconds(ours) - _expert_seconds(none)) * 1e3, (
        f"verify reads {read:.0f} experts a layer, and {before:.0f} at k = 0. A smaller "
        "--spec-tokens reads fewer"
    )


def _arithmetic(facts: _Run, row: Row) -> tuple[float, str] | None:
    """Report what products that wait for operations take beyond their bytes."""
    account = facts.accounts.get((row["spec_tokens"], row["batch_size"]))
    if account is None or facts.read_bytes_per_s is None or not row["spec_tokens"]:
        return None
    rate = facts.read_bytes_per_s
    bound = [line for line in account.lines if line.bound_by == "operations"]
    lost = sum(line.seconds - line.num_bytes / rate for line in bound)
    tokens = row["batch_size"] * (row["spec_tokens"] + 1)
    return lost * 1e3, (
        f"with {tokens} tokens at once, {len(bound)} kinds of matrix products are limited by "
        "arithmetic and not by memory. A smaller --spec-tokens or --batch-sizes makes them fewer"
    )


RULES: dict[str, Rule] = {
    "eager batch": _eager_batch,
    "padding": _padding,
    "host gap": _host_gap,
    "launches": _launches,
    "experts": _experts,
    "arithmetic": _arithmetic,
}


def _facts(run: RunDirectory) -> _Run:
    tables, record = run.tables, run.record
    measured = tables.latency[
        tables.latency["iteration_p50_ms"].notna()
        & tables.latency["status"].isin([Status.OK.value, Status.DISTURBED.value])
    ]
    graphs = with_costs(tables.capture).dropna(subset=["nodes"])
    nodes = graphs.groupby(GRAPHS)["nodes"].sum().reset_index()
    return _Run(
        rows=[*measured.astype(object).to_dict("records")],
        nodes={_graph_key(row): int(row["nodes"]) for row in nodes.to_dict("records")},
        accounts={(each.spec_tokens, each.batch_size): each for each in record.accounts},
        plans={each["spec_tokens"]: each for each in record.plans},
        read_bytes_per_s=None if record.limits is None else record.limits.read_bytes_per_s,
    )


def _scope(rows: list[Row]) -> Scope:
    """Return the scope, of those measured, that holds most in a graph."""
    measured = {row["scope"] for row in rows}
    order = (Scope.ITERATION, Scope.PHASE, Scope.EAGER)
    return next((scope for scope in order if scope in measured), Scope.EAGER)


def _graphs(rows: Iterator[Row]) -> Iterator[Row]:
    return (row for row in rows if row["mode"] == Mode.GRAPH)


def _graph_key(row: Row) -> tuple[str, int, int]:
    return str(row["scope"]), row["spec_tokens"], int(row["bucket"])


def _most_experts(account: Account) -> float | None:
    """Return the distinct experts a layer that verify read."""
    counts = [line.experts_read for line in account.lines if line.stage == Stage.VERIFY]
    return max((count for count in counts if count is not None), default=None)


def _expert_seconds(account: Account) -> float:
    lines = (line for line in account.lines if line.stage == Stage.VERIFY)
    return sum(line.seconds for line in lines if line.experts_read is not None)
