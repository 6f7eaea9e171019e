"""Compute what a plan means for a workload: padding, eager share and expected cost."""

from dataclasses import dataclass

from cgbench.planning.concurrency import Concurrency
from cgbench.planning.costs import Costs
from cgbench.planning.plan import CapturePlan, Coverage, Span
from cgbench.planning.plan_request import PlanRequest


@dataclass(frozen=True, slots=True)
class Expected:
    """An ``Expected`` holds the means of a plan, or of one row of its table, over a workload.

    ``share`` is the part of the workload that it covers, and ``eager_share`` the part without a
    graph. ``padding`` is the mean padding of what has a graph, 0 if nothing has one.
    ``worst_padding`` is the largest over all batch sizes served, even those that the workload does
    not hold.
    """

    share: float
    eager_share: float
    padding: float
    worst_padding: float


def weights_of(request: PlanRequest) -> list[float]:
    """Return the request's workload over 1..max_batch_size, summing to 1.

    Without a workload every batch size has the same weight.
    """
    workload = request.concurrency or Concurrency.uniform(1, request.max_batch_size)
    return workload.over(request.max_batch_size)


def costs_of(request: PlanRequest) -> Costs:
    """Return the request's measured costs, or costs in tokens if it has none."""
    return request.costs or Costs.in_tokens(request.query_len)


def expected_of_span(span: Span, weights: list[float]) -> Expected:
    """Return the expected values of one span, which is one row of a bucket table.

    ``padding`` is the plain mean if the workload has no weight in the span.
    """
    sizes = range(span.first, span.last + 1)
    inside = weights[span.first - 1 : span.last]
    share = sum(inside)
    if span.bucket is None:
        return Expected(share, share, 0.0, 0.0)
    shares = [span.bucket.padding_frac(size) for size in sizes]
    # Equal weights give the padding that a workload here would get.
    by = inside if share else [1.0] * len(inside)
    mean = sum(w * p for w, p in zip(by, shares, strict=True)) / sum(by)
    return Expected(share, 0.0, mean, max(shares))


def expected(plan: Coverage, weights: list[float]) -> Expected:
    """Return the expected values of a whole plan, or of one phase."""
    rows = [expected_of_span(span, weights) for span in plan.spans]
    eager = sum(row.eager_share for row in rows)
    in_graphs = sum(row.share for row in rows if not row.eager_share)
    padded = sum(row.share * row.padding for row in rows)
    worst = max((row.worst_padding for row in rows), default=0.0)
    return Expected(1.0, eager, padded / in_graphs if in_graphs else 0.0, worst)


def expected_cost(plan: CapturePlan, weights: list[float], costs: Costs) -> float:
    """Return the mean cost of an iteration over the workload, in the unit of ``costs``."""
    total = 0.0
    for span in plan.spans:
        for size in range(span.first, span.last + 1):
            cost = costs.graph(span.bucket.batch_size) if span.bucket else costs.eager(size)
            total += weights[size - 1] * cost
    return total
