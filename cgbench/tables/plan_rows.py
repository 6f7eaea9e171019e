"""What ``cgbench plan`` found, as plain rows: the one source of its tables, CSV and JSON.

Plain, for importing pandas alone would take longer than planning does.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TypeAlias

from cgbench.planning.expected import expected_of_span
from cgbench.planning.flags import flag_warnings, flags_for
from cgbench.planning.plan import Span
from cgbench.planning.study import Outcome, Saving

Value: TypeAlias = "str | int | float | list[int] | list[str] | list[Values] | None"
Values: TypeAlias = "dict[str, Value]"
"""An object of the JSON that is printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketRow:
    """A bucket, an eager hole (``mode`` says which), or a policy that was refused.

    ``batch_size`` and ``num_tokens`` are the bucket's, None where there is none.
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
    """One policy beside the others; means are over the workload. None: refused."""

    policy: str
    spec_tokens: int
    graphs: int | None
    largest_batch_size: int | None
    eager_batch_sizes: int | None
    eager_share: float | None
    mean_padding_frac: float | None
    worst_padding_frac: float | None
    expected_cost: float | None
    cost_unit: str
    refusal: str | None


def bucket_rows(outcome: Outcome) -> Iterator[BucketRow]:
    """A row a bucket or eager hole, ascending; one row with the reason where it was refused."""
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
    """``outcome`` as a row beside those of other policies."""
    plan, means = outcome.plan, outcome.expected
    return PolicyRow(
        policy=outcome.request.policy,
        spec_tokens=outcome.request.spec_tokens,
        graphs=len(plan.buckets) if plan else None,
        largest_batch_size=plan.eager_above if plan else None,
        eager_batch_sizes=plan.eager_batch_sizes if plan else None,
        eager_share=means.eager_share if means else None,
        mean_padding_frac=means.padding if means else None,
        worst_padding_frac=means.worst_padding if means else None,
        expected_cost=outcome.cost,
        cost_unit=outcome.unit,
        refusal=outcome.refusal or None,
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
        "warnings": list(plan.warnings) if plan else [],
        "buckets": [_rounded(row) for row in bucket_rows(outcome)] if plan else [],
    }


def _flags(outcome: Outcome, engine: str | None) -> Values:
    plan = outcome.plan
    if not engine or plan is None:
        return {"flags": None}
    warnings = [*plan.warnings, *flag_warnings(engine, outcome.request, plan)]
    return {"flags": flags_for(engine, plan), "warnings": warnings}


def without_noise(value: float) -> float:
    """As it is shown: what sums differ by, taken in another order, would show in a value that lies
    between two of fewer digits."""
    return round(value, 6)


def _rounded(row: BucketRow | PolicyRow | Saving) -> Values:
    return {
        name: without_noise(value) if isinstance(value, float) else value
        for name, value in asdict(row).items()
    }
