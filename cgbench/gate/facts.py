"""Compare deterministic facts exactly: graphs, their nodes and bytes, buckets, tokens."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from cgbench.gate.evidence import Evidence, LinePlace, MeasuredCell
from cgbench.gate.pairs import Pair
from cgbench.gate.verdicts import FACTS, Gate, Line
from cgbench.rundir.record_parts import PlanFacts
from cgbench.rundir.schema import SAME
from cgbench.words import Phase, Quant, Verdict

# The driver's own bytes come in its pages. They may differ between two runs of one build.
GRAPH_FACTS = {"nodes": True, "pool_bytes": True, "driver_bytes": False}


def plan_facts(base: Evidence, new: Evidence, gate: Gate) -> Iterator[Line]:
    """Compare the buckets of each k that either run planned, and the number of all buckets."""
    old, now = ({plan["spec_tokens"]: plan for plan in run.record.plans} for run in (base, new))
    for k in sorted(old.keys() | now.keys()):
        values = _buckets(old.get(k)), _buckets(now.get(k))
        yield _fact("buckets", values, gate, spec_tokens=k, unit="requests")
    yield _fact("planned buckets", (_planned(old), _planned(now)), gate)


def size_facts(base: Evidence, new: Evidence, gate: Gate) -> Iterator[Line]:
    """Compare the bytes of weights and KV, which any device allocates. Runs that did not record
    them give no line.
    """
    for name, what in (("weight_bytes", "weight bytes"), ("kv_bytes", "KV bytes")):
        values = base.record.model.get(name), new.record.model.get(name)
        if None not in values:
            yield _fact(what, values, gate)


def graph_facts(base: Evidence, new: Evidence, gate: Gate) -> Iterator[Line]:
    """Compare the number of graphs, and the nodes and bytes of each."""
    old, now = _graphs(base.capture), _graphs(new.capture)
    if old or now:
        yield _fact("graphs", (len(old), len(now)), gate)
    for key in (key for key in old if key in now):
        for name, repeats in GRAPH_FACTS.items():
            values = _integer(old[key][name]), _integer(now[key][name])
            yield _fact(name, values, gate if repeats else None, **_graph_place(*key))


def cell_facts(pair: Pair, gate: Gate, *, allow_token_change: bool) -> Iterator[Line]:
    """Compare the mode and the bucket of a cell, and the tokens that it generated."""
    base, new = pair.base, pair.new
    assert base and new
    where = pair.place.where
    yield _fact("mode", (base.mode, new.mode), gate, **where)
    yield _fact("bucket", (base.bucket, new.bucket), gate, **where)
    yield _tokens(base, new, where, allow_token_change=allow_token_change)


def _tokens(
    base: MeasuredCell, new: MeasuredCell, where: LinePlace, *, allow_token_change: bool
) -> Line:
    """Compare the tokens of a cell. In float32 greedy decoding has one right answer, in every
    scope. In lower precision, rounding alone may change it. So it may with FP8 keys and values, and
    with FP8 activations.
    """
    wanted = {"dtype": "float32", "acceptance": "greedy", "kv_dtype": SAME}
    is_exact = all(base.settings[name] == value for name, value in wanted.items())
    is_exact &= base.settings["quant"] != str(Quant.W8A8)
    hashes = base.tokens_sha256, new.tokens_sha256
    line = replace(_fact("tokens", hashes, None, **where), gated=is_exact)
    if line.verdict is Verdict.SAME or not is_exact or allow_token_change:
        return line
    reason = "float32 greedy tokens differ. --allow-token-change accepts them"
    return replace(line, verdict=Verdict.REGRESSED, reason=reason)


def _fact(what: str, values: tuple[Any, Any], gate: Gate | None, **where: Any) -> Line:
    """Return the line of one fact. It is never gated if ``gate`` is None."""
    base, new = values
    gated = gate is not None and FACTS in gate.metrics
    line = Line(what=what, verdict=Verdict.SAME, gated=gated, base=base, new=new, **where)
    if base == new:
        return line
    if gated:
        return replace(line, verdict=Verdict.REGRESSED, reason="--gate facts allows no change")
    return replace(line, verdict=Verdict.CHANGED)


def _graph_place(phase: str, spec_tokens: int, bucket: int) -> LinePlace:
    place = f"{phase} graph, bucket {bucket}"
    return LinePlace(scope=Phase(phase).scope.value, spec_tokens=spec_tokens, place=place)


def _graphs(capture: pd.DataFrame) -> dict[tuple[str, int, int], dict[Any, Any]]:
    rows = capture.astype(object).to_dict("records")
    return {(row["phase"], row["spec_tokens"], row["bucket"]): row for row in rows}


def _buckets(plan: PlanFacts | None) -> str | None:
    return None if plan is None else ",".join(map(str, plan["batch_sizes"]))


def _planned(plans: dict[int, PlanFacts]) -> int:
    return sum(len(plan["batch_sizes"]) for plan in plans.values())


def _integer(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)
