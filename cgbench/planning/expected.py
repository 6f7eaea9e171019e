"""What a plan means for a workload: padding, eager share and expected cost of an iteration."""

from dataclasses import dataclass

from cgbench.planning.concurrency import Concurrency
from cgbench.planning.costs import Costs
from cgbench.planning.plan import CapturePlan, Coverage, Span
from cgbench.planning.plan_request import PlanRequest


@dataclass(frozen=True, slots=True)
class Expected:
    """Means over the workload: ``share`` of it, ``eager_share`` with no graph, ``padding``.

    ``padding`` is over what has a graph; 0 where nothing has. ``worst_padding`` is over the batch
    sizes served, whether or not the workload holds them.
    """

    share: float
    eager_share: float
    padding: float
    worst_padding: float


def weights_of(request: PlanRequest) -> list[float]:
    """The request's workload over 1..max_batch_size, summing to 1."""
    workload = request.concurrency or Concurrency.uniform(1, request.max_batch_size)
    return workload.over(request.max_batch_size)


def costs_of(request: PlanRequest) -> Costs:
    """The request's costs: measured ones where it has them, else tokens."""
    return request.costs or Costs.in_tokens(request.query_len)


def expected_of_span(span: Span, weights: list[float]) -> Expected:
    """One row of a bucket table. ``padding`` is the plain mean where nothing has a weight."""
    sizes = range(span.first, span.last + 1)
    inside = weights[span.first - 1 : span.last]
    share = sum(inside)
    if span.bucket is None:
        return Expected(share, share, 0.0, 0.0)
    shares = [span.bucket.padding_frac(size) for size in sizes]
    # Over equal weights where the workload has none here: the padding it would get.
    by = inside if share else [1.0] * len(inside)
    mean = sum(w * p for w, p in zip(by, shares, strict=True)) / sum(by)
    return Expected(share, 0.0, mean, max(shares))


def expected(plan: Coverage, weights: list[float]) -> Expected:
    """The whole plan's row in a comparison, or one phase's."""
    rows = [expected_of_span(span, weights) for span in plan.spans]
    eager = sum(row.eager_share for row in rows)
    in_graphs = sum(row.share for row in rows if not row.eager_share)
    padded = sum(row.share * row.padding for row in rows)
    worst = max((row.worst_padding for row in rows), default=0.0)
    return Expected(1.0, eager, padded / in_graphs if in_graphs else 0.0, worst)


def expected_cost(plan: CapturePlan, weights: list[float], costs: Costs) -> float:
    """Mean cost of an iteration over the workload, in the unit of ``costs``."""
    total = 0.0
    for span in plan.spans:
        for size in range(span.first, span.last + 1):
            cost = costs.graph(span.bucket.batch_size) if span.bucket else costs.eager(size)
            total += weights[size - 1] * cost
    return total
