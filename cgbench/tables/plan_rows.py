"""Turn what ``cgbench plan`` found into plain rows, the one source of its tables, CSV and JSON.

They are plain because importing pandas alone would take longer than planning does.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TypeAlias

from cgbench.planning.admission import Absorbing, Admission
from cgbench.planning.expected import expected, expected_of_span
from cgbench.planning.flags import option_of
from cgbench.planning.phases import ranges
from cgbench.planning.plan import Span
from cgbench.planning.policies import RELEASES
from cgbench.planning.study import Outcome, Saving
from cgbench.planning.tier_plans import Deployment

Value: TypeAlias = "str | int | float | Sequence[Value] | Values | None"
Values: TypeAlias = "dict[str, Value]"
"""An object of the JSON that is printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketRow:
    """A ``BucketRow`` is a bucket, an eager hole or a policy that was refused. ``mode`` names
    which.

    ``batch_size`` and ``num_tokens`` are the bucket's, and None if there is none.
    """

    policy: str
    spec_tokens: int
    mode: str
    batch_size: int | None = None
    num_tokens: int | None = None
    serves_from: int | None = None
    serves_to: int | None = None
    worst_padding_frac: float | None = None
    mean_padding_frac: float | None = None
    workload_share: float | None = None
    note: str | None = None


BUCKET_COLUMNS = tuple(each.name for each in fields(BucketRow))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """A ``PolicyRow`` is one policy beside the others. Means are over the workload. None stands for
    a refused policy.
    """

    policy: str
    spec_tokens: int
    graphs: int | None
    largest_batch_size: int | None
    eager_batch_sizes: int | None
    any_phase_eager: int | None
    graphs_of_all_phases: int | None
    eager_share: float | None
    mean_padding_frac: float | None
    worst_padding_frac: float | None
    expected_cost: float | None
    cost_unit: str
    refusal: str | None


def bucket_rows(outcome: Outcome) -> Iterator[BucketRow]:
    """Yield a row a bucket or eager hole, ascending. A refused policy has one row with the
    reason.
    """
    policy, spec_tokens = outcome.request.policy, outcome.request.spec_tokens
    if outcome.plan is None:
        yield BucketRow(
            policy=policy, spec_tokens=spec_tokens, mode="refused", note=outcome.refusal
        )
        return
    for span in outcome.plan.spans:
        yield _span_row(outcome, span)
    served = {span.bucket for span in outcome.plan.spans}
    for bucket in outcome.plan.buckets:
        if bucket not in served:
            yield BucketRow(
                policy=policy,
                spec_tokens=spec_tokens,
                mode="graph",
                batch_size=bucket.batch_size,
                num_tokens=bucket.num_tokens,
                note="serves nothing: over the maximum",
            )


def _span_row(outcome: Outcome, span: Span) -> BucketRow:
    means, bucket = expected_of_span(span, outcome.weights), span.bucket
    return BucketRow(
        policy=outcome.request.policy,
        spec_tokens=outcome.request.spec_tokens,
        mode="graph" if bucket else "eager",
        batch_size=bucket.batch_size if bucket else None,
        num_tokens=bucket.num_tokens if bucket else None,
        serves_from=span.first,
        serves_to=span.last,
        worst_padding_frac=means.worst_padding if bucket else None,
        mean_padding_frac=means.padding if bucket else None,
        workload_share=means.share,
    )


def policy_row(outcome: Outcome) -> PolicyRow:
    """Return ``outcome`` as a row beside those of other policies."""
    plan, means = outcome.plan, outcome.expected
    return PolicyRow(
        policy=outcome.request.policy,
        spec_tokens=outcome.request.spec_tokens,
        graphs=len(plan.buckets) if plan else None,
        largest_batch_size=plan.eager_above if plan else None,
        eager_batch_sizes=plan.eager_batch_sizes if plan else None,
        any_phase_eager=len(outcome.any_phase_eager) if plan else None,
        graphs_of_all_phases=outcome.num_graphs,
        eager_share=means.eager_share if means else None,
        mean_padding_frac=means.padding if means else None,
        worst_padding_frac=means.worst_padding if means else None,
        expected_cost=outcome.cost,
        cost_unit=outcome.unit,
        refusal=outcome.refusal or None,
    )


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """A ``PhaseRow`` is one phase of a plan: its graphs, and the ranges of batch sizes that have
    none.
    """

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
    """A ``LengthRow`` is one draft length of a schedule, with the ranges of batch sizes that run
    it.
    """

    spec_tokens: int
    requests: tuple[tuple[int, int], ...]
    graphs: int
    batch_sizes: tuple[int, ...]
    eager: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRow:
    """A ``ReplayRow`` is the result of replaying a request trace. ``batch_sizes`` counts iterations
    by batch size. ``tenths`` are mean batch sizes in each tenth of the time.
    """

    iterations: int
    in_graph_share: float
    mean_batch_size: float
    padding_ms: float
    total_ms: float
    tpot_p50_ms: float
    tpot_p90_ms: float
    tpot_p99_ms: float
    batch_sizes: dict[int, int]
    tenths: tuple[float, ...]
    absorbing: Absorbing | None


def phase_rows(outcome: Outcome) -> Iterator[PhaseRow]:
    """Yield a row a phase. Means are over the workload."""
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
    """Yield a row a draft length."""
    for each in found.lengths:
        yield LengthRow(
            spec_tokens=each.spec_tokens,
            requests=tuple(ranges(each.runs)),
            graphs=each.phases.num_graphs,
            batch_sizes=each.phases.plan.batch_sizes,
            eager=tuple(ranges(each.eager_batch_sizes)),
        )


def plan_csv(outcomes: Sequence[Outcome]) -> str:
    """Return every bucket and hole of every outcome as CSV. An empty cell has no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, BUCKET_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        writer.writerows(map(_rounded, bucket_rows(outcome)))
    return text.getvalue().rstrip("\n")


def plan_json(
    outcomes: Sequence[Outcome], savings: Sequence[Saving], engine: str | None = None
) -> str:
    """Return every outcome as JSON with its buckets, the engine's own list and its warnings, and
    the savings.

    With ``engine``, each outcome also has the text of the engine's option, or null if there is no
    plan. ``option_of`` may raise ``BadInputError``.
    """
    plans = [_plan_object(outcome) | _flags(outcome, engine) for outcome in outcomes]
    saved = [_rounded(saving) for saving in savings]
    return json.dumps({"plans": plans, "savings": saved}, indent=2)


def _plan_object(outcome: Outcome) -> Values:
    request, plan = outcome.request, outcome.plan
    return {
        **_rounded(policy_row(outcome)),
        "max_num_seqs": request.max_batch_size,
        "workload": request.concurrency.name if request.concurrency else "every batch size alike",
        "capture_tokens": list(plan.capture_tokens) if plan else None,
        "batch_sizes": list(plan.batch_sizes) if plan else None,
        "indivisible": list(plan.indivisible) if plan else None,
        "phases": [*map(asdict, phase_rows(outcome))],
        "mixed_tokens": list(outcome.phases.mixed_tokens) if outcome.phases else [],
        "lengths": [*map(asdict, length_rows(outcome.deployment))] if outcome.deployment else None,
        "admission": _rounded(_replay_row(outcome.admission)) if outcome.admission else None,
        "graph_memory_bytes": outcome.memory_bytes and round(outcome.memory_bytes),
        "graph_memory_source": outcome.memory.source,
        "checked_against": RELEASES.get(request.policy),
        "notes": list(outcome.notes),
        "warnings": list(plan.warnings) if plan else [],
        "buckets": [_rounded(row) for row in bucket_rows(outcome)] if plan else [],
    }


def _replay_row(found: Admission) -> ReplayRow:
    return ReplayRow(
        iterations=found.num_iterations,
        in_graph_share=found.in_graph_share,
        mean_batch_size=found.mean_batch_size,
        padding_ms=found.padding_ms,
        total_ms=found.total_ms,
        tpot_p50_ms=found.tpot_percentile(50),
        tpot_p90_ms=found.tpot_percentile(90),
        tpot_p99_ms=found.tpot_percentile(99),
        batch_sizes=dict(found.iterations),
        tenths=tuple(map(without_noise, found.tenths)),
        absorbing=found.absorbing,
    )


def _flags(outcome: Outcome, engine: str | None) -> Values:
    plan = outcome.plan
    if not engine or plan is None:
        return {"flags": None}
    option = option_of(engine, outcome.request, plan)
    return {"flags": option.text, "warnings": [*plan.warnings, *option.warnings]}


def without_noise(value: float) -> float:
    """Return the value as it is shown.

    Sums that are taken in another order differ in their last digits. That would show in a value
    that lies between two of fewer digits.
    """
    return round(value, 6)


def _rounded(row: BucketRow | PolicyRow | ReplayRow | Saving) -> Values:
    return {
        name: without_noise(value) if isinstance(value, float) else value
        for name, value in asdict(row).items()
    }
