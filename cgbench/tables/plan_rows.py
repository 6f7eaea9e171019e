"""What ``cgbench plan`` found, as plain rows: the one source of its tables, CSV and JSON.

Plain, for importing pandas alone would take longer than planning does.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cgbench.planning.admission import Admission
from cgbench.planning.expected import expected, expected_of_span
from cgbench.planning.flags import option_of
from cgbench.planning.phases import ranges
from cgbench.planning.plan import Span
from cgbench.planning.policies import RELEASES
from cgbench.planning.study import Outcome, Saving
from cgbench.planning.tier_plans import Deployment

BUCKET_COLUMNS = (
    "policy",
    "spec_tokens",
    "mode",
    "batch_size",
    "num_tokens",
    "serves_from",
    "serves_to",
    "worst_padding_frac",
    "mean_padding_frac",
    "workload_share",
    "note",
)


def bucket_rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """A row a bucket or eager hole, ascending; one row with the reason where it was refused.

    ``batch_size`` and ``num_tokens`` are the bucket's, None where there is none.
    """
    who = {"policy": outcome.request.policy, "spec_tokens": outcome.request.spec_tokens}
    if outcome.plan is None:
        yield {**dict.fromkeys(BUCKET_COLUMNS), **who, "mode": "refused", "note": outcome.refusal}
        return
    for span in outcome.plan.spans:
        yield {**who, **_span_row(span, outcome.weights), "note": None}
    served = {span.bucket for span in outcome.plan.spans}
    for bucket in outcome.plan.buckets:
        if bucket not in served:
            unused = {"mode": "graph", **asdict(bucket), "note": "serves nothing: over the maximum"}
            yield {**dict.fromkeys(BUCKET_COLUMNS), **who, **unused}


def _span_row(span: Span, weights: list[float]) -> dict[str, Any]:
    means, bucket = expected_of_span(span, weights), span.bucket
    return {
        "mode": "graph" if bucket else "eager",
        "batch_size": bucket and bucket.batch_size,
        "num_tokens": bucket and bucket.num_tokens,
        "serves_from": span.first,
        "serves_to": span.last,
        "worst_padding_frac": means.worst_padding if bucket else None,
        "mean_padding_frac": means.padding if bucket else None,
        "workload_share": means.share,
    }


def summary_row(outcome: Outcome) -> dict[str, Any]:
    """One policy's row beside the others; means are over the workload. None: refused."""
    plan, means, phases = outcome.plan, outcome.expected, outcome.phases
    return {
        "policy": outcome.request.policy,
        "spec_tokens": outcome.request.spec_tokens,
        "graphs": plan and len(plan.buckets),
        "largest_batch_size": plan and plan.eager_above,
        "eager_batch_sizes": plan and plan.eager_batch_sizes,
        "any_phase_eager": phases and len(phases.eager_batch_sizes),
        "graphs_of_all_phases": phases and phases.num_graphs,
        "eager_share": means and means.eager_share,
        "mean_padding_frac": means and means.padding,
        "worst_padding_frac": means and means.worst_padding,
        "expected_cost": outcome.cost,
        "cost_unit": outcome.unit,
        "refusal": outcome.refusal or None,
    }


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """One phase of a plan: its graphs, and the ranges of batch sizes that have none."""

    phase: str
    tokens_per_request: int
    graphs: int
    batch_sizes: tuple[int, ...]
    eager: tuple[tuple[int, int], ...]
    eager_share: float
    mean_padding_frac: float
    note: str | None


@dataclass(frozen=True, slots=True)
class LengthRow:
    """One draft length of a schedule, with the ranges of batch sizes that run it."""

    spec_tokens: int
    requests: tuple[tuple[int, int], ...]
    graphs: int
    batch_sizes: tuple[int, ...]
    eager: tuple[tuple[int, int], ...]


def phase_rows(outcome: Outcome) -> Iterator[PhaseRow]:
    """A row a phase; means are over the workload."""
    for phase in outcome.phases.phases if outcome.phases else ():
        means = expected(phase, outcome.weights)
        yield PhaseRow(
            phase=phase.phase.value,
            tokens_per_request=phase.query_len,
            graphs=phase.num_graphs,
            batch_sizes=phase.batch_sizes,
            eager=tuple((span.first, span.last) for span in phase.eager_spans),
            eager_share=without_noise(means.eager_share),
            mean_padding_frac=without_noise(means.padding),
            note=phase.note or None,
        )


def length_rows(found: Deployment) -> Iterator[LengthRow]:
    """A row a draft length."""
    for each in found.lengths:
        yield LengthRow(
            spec_tokens=each.spec_tokens,
            requests=tuple(ranges(each.runs)),
            graphs=each.phases.num_graphs,
            batch_sizes=each.phases.plan.batch_sizes,
            eager=tuple(ranges(each.eager_batch_sizes)),
        )


def plan_csv(outcomes: Sequence[Outcome]) -> str:
    """Every bucket and hole of every outcome; an empty cell has no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, BUCKET_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        writer.writerows(map(_rounded, bucket_rows(outcome)))
    return text.getvalue().rstrip("\n")


def plan_json(
    outcomes: Sequence[Outcome], savings: Sequence[Saving], engine: str | None = None
) -> str:
    """Every outcome with its buckets, the engine's own list and its warnings, and the savings.

    With ``engine`` also its option's text (see ``flags_for``, which may raise ``BadInputError``);
    None where there is no plan.
    """
    plans = [{**_plan_object(outcome), **_flags(outcome, engine)} for outcome in outcomes]
    saved = [_rounded(asdict(saving)) for saving in savings]
    return json.dumps({"plans": plans, "savings": saved}, indent=2)


def _plan_object(outcome: Outcome) -> dict[str, Any]:
    request, plan = outcome.request, outcome.plan
    return {
        **_rounded(summary_row(outcome)),
        "max_num_seqs": request.max_batch_size,
        "workload": request.concurrency.name if request.concurrency else "every batch size alike",
        "capture_tokens": list(plan.capture_tokens) if plan else None,
        "batch_sizes": list(plan.batch_sizes) if plan else None,
        "indivisible": list(plan.indivisible) if plan else None,
        "phases": [*map(asdict, phase_rows(outcome))],
        "mixed_tokens": list(outcome.phases.mixed_tokens) if outcome.phases else [],
        "lengths": [*map(asdict, length_rows(outcome.deployment))] if outcome.deployment else None,
        "admission": _admission(outcome.admission) if outcome.admission else None,
        "graph_memory_bytes": outcome.memory_bytes and round(outcome.memory_bytes),
        "graph_memory_source": outcome.memory.source,
        "checked_against": RELEASES.get(request.policy),
        "notes": list(outcome.notes),
        "warnings": list(plan.warnings) if plan else [],
        "buckets": [_rounded(row) for row in bucket_rows(outcome)] if plan else [],
    }


def _admission(found: Admission) -> dict[str, object]:
    percentiles = {f"tpot_p{p}_ms": found.tpot_percentile(p) for p in (50, 90, 99)}
    return {
        **_rounded(
            {
                "iterations": found.num_iterations,
                "in_graph_share": found.in_graph_share,
                "mean_batch_size": found.mean_batch_size,
                "padding_ms": found.padding_ms,
                "total_ms": found.total_ms,
                **percentiles,
            }
        ),
        "batch_sizes": dict(found.iterations),
        "tenths": [without_noise(each) for each in found.tenths],
        "absorbing": asdict(found.absorbing) if found.absorbing else None,
    }


def _flags(outcome: Outcome, engine: str | None) -> dict[str, Any]:
    plan = outcome.plan
    if not engine or plan is None:
        return {"flags": None}
    option = option_of(engine, outcome.request, plan)
    return {"flags": option.text, "warnings": [*plan.warnings, *option.warnings]}


def without_noise(value: float) -> float:
    """As it is shown: what sums differ by, taken in another order, would show in a value that lies
    between two of fewer digits."""
    return round(value, 6)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: without_noise(value) if isinstance(value, float) else value
        for name, value in row.items()
    }
