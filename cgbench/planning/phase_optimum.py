"""Find the best buckets of every phase, each phase with a list of its own.

An engine that captures phases apart may give each its own buckets. The expected cost of an
iteration is then a sum over phases, and the number of graphs couples them. The least cost of phase
p with at most j graphs is f_p(j). The best division of N graphs is the min-plus convolution

    f(N) = min over j_1 + .. + j_P <= N of f_1(j_1) + .. + f_P(j_P)

which is exact, because a phase's cost depends on nothing but its own buckets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cgbench.errors import PlanError
from cgbench.planning.costs import DRAFT_SHARE, Curve
from cgbench.planning.expected import costs_of, weights_of
from cgbench.planning.optimal import Problem, least_costs, solve
from cgbench.planning.phases import PhaseGraphs, PhasePlan, graphs_at
from cgbench.planning.plan_request import PlanRequest
from cgbench.words import Phase

PhaseCurve = Callable[[int], float]

# About ten seconds, counted in batch sizes times graphs.
_MAX_STEPS = 12_000_000


@dataclass(frozen=True)
class PhaseOptimum:
    """A ``PhaseOptimum`` holds the best graphs of each phase, buckets ascending.

    ``cost`` is the expected cost of an iteration with them.
    """

    phases: tuple[PhaseGraphs, ...]
    cost: float

    @property
    def num_graphs(self) -> int:
        """Return the number of graphs of all phases together."""
        return sum(each.num_graphs for each in self.phases)


def phases_at(spec_tokens: int) -> tuple[Phase, ...]:
    """Return the phases of an iteration with k drafts."""
    return (Phase.VERIFY, Phase.DRAFT_FIRST, Phase.DRAFT_REST)[: min(spec_tokens, 2) + 1]


def phase_optimum(request: PlanRequest, num_graphs: int) -> PhaseOptimum:
    """Return the buckets of least expected cost, with at most ``num_graphs`` graphs in all phases.

    Raise ``PlanError`` if that is too much work.
    """
    phases = phases_at(request.spec_tokens)
    problems = [phase_problem(request, phase) for phase in phases]
    most = min(num_graphs, request.max_batch_size)
    if most * request.max_batch_size * len(phases) > _MAX_STEPS:
        raise PlanError("--policy optimal: too many graphs by phase. Lower --max-num-seqs")
    counts, cost = _divide([least_costs(problem, most) for problem in problems], num_graphs)
    found = (
        _chosen(request, phase, problem, count)
        for phase, problem, count in zip(phases, problems, counts, strict=True)
    )
    return PhaseOptimum(tuple(found), cost)


def phase_problem(request: PlanRequest, phase: Phase) -> Problem:
    """Return one phase's problem: the workload, and the phase's cost at each batch size."""
    sizes = range(1, request.max_batch_size + 1)
    in_graph, eager = curves_of(request, phase)
    return Problem(weights_of(request), [*map(in_graph, sizes)], [*map(eager, sizes)])


def phase_cost(request: PlanRequest, found: PhasePlan) -> float:
    """Return the expected cost of an iteration with the graphs of ``found``, summed over phases."""
    at = cost_by_batch_size(request, found)
    return sum(weight * at(n) for n, weight in enumerate(weights_of(request), start=1))


def cost_at(request: PlanRequest, found: PhasePlan, batch_size: int) -> float:
    """Return the cost of an iteration of so many requests, summed over phases."""
    return cost_by_batch_size(request, found)(batch_size)


def cost_by_batch_size(request: PlanRequest, found: PhasePlan) -> PhaseCurve:
    """Return a function from a batch size to the cost of its iteration.

    Each phase runs in its bucket, or eager if it has none.
    """
    if whole := found.of(Phase.ITERATION):
        parts = [(whole, phase) for phase in phases_at(request.spec_tokens)]
    else:
        parts = [(graphs, graphs.phase) for graphs in found.phases]
    curves = [(graphs, *curves_of(request, phase)) for graphs, phase in parts]

    def cost(batch_size: int) -> float:
        total = 0.0
        for graphs, in_graph, eager in curves:
            bucket = graphs.bucket_for(batch_size)
            total += in_graph(bucket.batch_size) if bucket else eager(batch_size)
        return total

    return cost


def curves_of(request: PlanRequest, phase: Phase) -> tuple[PhaseCurve, PhaseCurve]:
    """Return two cost curves of one phase: by bucket in a graph, and by batch size eager.

    Costs without measured drafts are divided by tokens. Measured drafts are divided evenly over the
    steps.
    """
    costs, k, q = costs_of(request), request.spec_tokens, request.query_len
    if costs.drafts is None or not k:
        share = _share_of_tokens(phase, k, q)
        return _scaled(costs.graph, share), _scaled(costs.eager, share)
    measured = (costs.graph, costs.drafts.graph), (costs.eager, costs.drafts.eager)
    in_graph, eager = (_measured(whole, drafts, phase, k) for whole, drafts in measured)
    return in_graph, eager


def _share_of_tokens(phase: Phase, k: int, q: int) -> float:
    """Return the phase's share of a cost that counts tokens of verify.

    Draft 1 runs q tokens a request, and each later draft runs one.
    """
    match phase:
        case Phase.DRAFT_FIRST:
            return DRAFT_SHARE
        case Phase.DRAFT_REST:
            return DRAFT_SHARE * (k - 1) / q
    return 1.0


def _scaled(curve: Curve, share: float) -> PhaseCurve:
    return lambda size: share * curve(size)


def _measured(whole: Curve, drafts: Curve, phase: Phase, k: int) -> PhaseCurve:
    """Return the part of a phase in measured costs.

    Measured drafts are divided evenly over the steps. Verify is what is left.
    """
    if phase is Phase.VERIFY:
        return lambda size: whole(size) - drafts(size)
    steps = 1 if phase is Phase.DRAFT_FIRST else k - 1
    return lambda size: drafts(size) * steps / k


def _divide(costs: Sequence[Sequence[float]], num_graphs: int) -> tuple[list[int], float]:
    """Return how many graphs each phase gets, and the least sum.

    A graph that gains nothing is left out.
    """
    best, taken = [0.0] * (num_graphs + 1), list[list[int]]()
    for column in costs:
        choices = [
            min((best[n - j] + column[j], j) for j in range(min(n, len(column) - 1) + 1))
            for n in range(num_graphs + 1)
        ]
        taken.append([j for _, j in choices])
        best = [cost for cost, _ in choices]
    counts, left = list[int](), num_graphs
    for column_taken in reversed(taken):
        counts.append(column_taken[left])
        left -= column_taken[left]
    return counts[::-1], best[num_graphs]


def _chosen(request: PlanRequest, phase: Phase, problem: Problem, count: int) -> PhaseGraphs:
    query_len = 1 if phase is Phase.DRAFT_REST else request.query_len
    return graphs_at(phase, request, query_len, solve(problem, count) if count else ())
