"""Plan several policies for several k side by side, and compute what the best list would save."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from cgbench.errors import BadInputError, PlanError, RefusedPlanError
from cgbench.planning.admission import Admission
from cgbench.planning.costs import Costs
from cgbench.planning.expected import Expected, costs_of, expected, expected_cost, weights_of
from cgbench.planning.frontier import Frontier
from cgbench.planning.graph_memory import STATED, GraphMemory
from cgbench.planning.optimal import problem_of
from cgbench.planning.phases import PhasePlan, phases_of
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import CaptureUnit, PlanRequest
from cgbench.planning.policies import POLICIES, plan
from cgbench.planning.tier_plans import Deployment

DEFAULT_MAX_GRAPHS = 32
"""``optimal`` may capture this many graphs if no budget is given: about as many as engines list."""

# Two costs closer than this share are the same but for rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Outcome:
    """An ``Outcome`` is one policy's answer to one request: a plan, or the error that refuses it.

    ``notes`` are lines on what the request took from the engine's defaults or from a launch line.
    ``admission`` is a replay of a request trace. ``deployment`` holds all graphs of a draft
    schedule, and ``costs_by_length`` the measured costs of its lengths. ``memory`` is the model
    that the graphs' bytes are counted by.
    """

    request: PlanRequest
    plan: CapturePlan | None
    error: PlanError | None = None
    notes: tuple[str, ...] = ()
    admission: Admission | None = None
    deployment: Deployment | None = None
    costs_by_length: Mapping[int, Costs] | None = None
    memory: GraphMemory = STATED

    @property
    def refusal(self) -> str:
        """Return why there is no plan, with the policy's name. It is empty if there is one."""
        return str(self.error or "")

    @property
    def reason(self) -> str:
        """Return why there is no plan, to be shown beside the policy's name."""
        return self.error.reason if isinstance(self.error, RefusedPlanError) else self.refusal

    @cached_property
    def weights(self) -> list[float]:
        """Return the workload's weights of 1..max_batch_size, summing to 1."""
        return weights_of(self.request)

    @cached_property
    def expected(self) -> Expected | None:
        """Return the plan's padding and eager share over the workload, or None without a plan."""
        return expected(self.plan, self.weights) if self.plan else None

    @cached_property
    def phases(self) -> PhasePlan | None:
        """Return the graphs of every phase, or None without a plan."""
        return phases_of(self.request, self.plan) if self.plan else None

    @property
    def memory_bytes(self) -> float | None:
        """Return the estimated bytes of all graphs together, or None without a plan."""
        if self.deployment:
            return self.memory.of(*(each.phases for each in self.deployment.lengths))
        return self.memory.of(self.phases) if self.phases else None

    @property
    def num_graphs(self) -> int | None:
        """Return the decode graphs of all phases and draft lengths, or None without a plan."""
        counted = self.deployment or self.phases
        return counted.num_graphs if counted else None

    @property
    def any_phase_eager(self) -> tuple[int, ...]:
        """Return the batch sizes without a graph in some phase, at a draft length that they may
        run.
        """
        counted = self.deployment or self.phases
        return counted.eager_batch_sizes if counted else ()

    @cached_property
    def cost(self) -> float | None:
        """Return the expected cost of an iteration, in ``unit``, or None without a plan."""
        if self.plan is None:
            return None
        return expected_cost(self.plan, self.weights, costs_of(self.request))

    @property
    def unit(self) -> str:
        """Return the unit that costs are counted in, which is ``ms`` or ``tokens``."""
        return costs_of(self.request).unit

    @property
    def unit_words(self) -> str:
        """Return the unit, with what a token without a graph counts where tokens are counted."""
        costs = costs_of(self.request)
        eager, captured = (each.points[0][1] for each in (costs.eager, costs.graph))
        if costs.unit != "tokens" or eager == captured:
            return costs.unit
        return f"tokens, where one without a graph counts {eager / captured:g} (--eager-penalty)"


@dataclass(frozen=True, slots=True)
class Saving:
    """A ``Saving`` compares the plan of ``optimal`` with one policy's, under equal workload and
    costs.

    ``time_frac`` is the share of that policy's expected time that ``optimal`` saves. ``graphs`` is
    how many graphs fewer it captures, and more if below 0. The last two compare at equal terms.
    ``time_frac_at_same_graphs`` is the time saved with as many graphs as that policy has.
    ``graphs_at_same_time`` is the fewest graphs that are no slower than it.
    """

    policy: str
    spec_tokens: int
    time_frac: float
    graphs: int
    time_frac_at_same_graphs: float
    graphs_at_same_time: int


def study(requests: Iterable[PlanRequest]) -> list[Outcome]:
    """Return every request's outcome, in order.

    Raise the first refusal if every request is refused.
    """
    outcomes = [outcome_of(request) for request in requests]
    raise_if_all_refused(outcomes)
    return outcomes


def raise_if_all_refused(outcomes: Sequence[Outcome]) -> None:
    """Raise the first refusal if no request has a plan."""
    if (error := outcomes[0].error) and not any(outcome.plan for outcome in outcomes):
        raise error


def requests_for(
    base: PlanRequest, policies: Sequence[str], spec_tokens: Iterable[int]
) -> list[PlanRequest]:
    """Return one request for each k and policy, otherwise like ``base``.

    The sizes of ``base`` go to ``explicit`` alone. The name ``all`` stands for every policy,
    without ``explicit`` if no sizes are given. Raise ``BadInputError`` for sizes or a budget that
    none of the names reads.
    """
    names = _names(policies, bool(base.capture_sizes))
    _check_budget(base, names)
    return [_request(base, name, k) for k in spec_tokens for name in names]


def savings(outcomes: list[Outcome]) -> list[Saving]:
    """Return what each ``optimal`` among the outcomes saves against each other policy at its k.

    If ``optimal`` stands alone, it is compared with every engine's list.
    """
    return [
        saving
        for best in outcomes
        if best.plan and best.request.policy == "optimal"
        for saving in _savings(best, outcomes)
    ]


def _names(policies: Sequence[str], has_sizes: bool) -> list[str]:
    known = sorted(POLICIES, key=lambda name: (name == "optimal", name))
    every = [name for name in known if name != "explicit" or has_sizes]
    named = (every if name == "all" else [name] for name in policies)
    names = list(dict.fromkeys(chain.from_iterable(named)))
    if has_sizes and "explicit" not in names:
        raise BadInputError(
            f"--capture-sizes goes with --policy explicit, not {','.join(policies)}"
        )
    return names


def _check_budget(base: PlanRequest, names: list[str]) -> None:
    budgets = {
        "--max-graphs": base.max_graphs,
        "--max-memory": base.max_memory_bytes,
        "--max-capture-seconds": base.max_capture_s,
    }
    given = [flag for flag, value in budgets.items() if value is not None]
    if given and "optimal" not in names:
        raise BadInputError(f"{given[0]}: a budget of --policy optimal. Add it, or leave this out")


def _request(base: PlanRequest, policy: str, spec_tokens: int) -> PlanRequest:
    is_explicit = policy == "explicit"
    max_graphs = DEFAULT_MAX_GRAPHS if _is_unlimited(base) else base.max_graphs
    return replace(
        base,
        policy=policy,
        spec_tokens=spec_tokens,
        capture_sizes=base.capture_sizes if is_explicit else (),
        capture_unit=base.capture_unit if is_explicit else CaptureUnit.REQUESTS,
        max_graphs=max_graphs if policy == "optimal" else None,
    )


def _is_unlimited(base: PlanRequest) -> bool:
    return base.max_graphs is base.max_memory_bytes is base.max_capture_s is None


def outcome_of(request: PlanRequest) -> Outcome:
    """Return one request's plan or its refusal. Raise ``PlanError`` for an unknown policy."""
    if request.policy not in POLICIES:
        plan(request)
    try:
        return Outcome(request, plan(request))
    except PlanError as error:
        return Outcome(request, None, error)


def _savings(best: Outcome, outcomes: list[Outcome]) -> Iterator[Saving]:
    others = [
        (each, len(each.plan.buckets)) for each in _rivals(best, outcomes) if each.plan is not None
    ]
    frontier = Frontier(problem_of(best.request))
    for other, graphs in others:
        yield _saving(best, other, graphs, frontier)


# `exact` belongs to no engine, and nothing can be saved on it.
_NO_RIVALS = ("optimal", "exact")


def _rivals(best: Outcome, outcomes: list[Outcome]) -> list[Outcome]:
    """Return the other policies that were asked for at this k, or every engine's if none was."""
    asked = [each for each in outcomes if each.request.spec_tokens == best.request.spec_tokens]
    rivals = [each for each in asked if each.request.policy not in _NO_RIVALS]
    if rivals:
        return rivals
    engines = sorted(POLICIES.keys() - {*_NO_RIVALS, "explicit"})
    unlimited = replace(best.request, max_graphs=None, max_memory_bytes=None, max_capture_s=None)
    return study(replace(unlimited, policy=name) for name in engines)


def _saving(best: Outcome, other: Outcome, graphs: int, frontier: Frontier) -> Saving:
    assert best.plan and best.cost is not None and other.cost is not None
    cost = other.cost
    no_slower = frontier.fewest(cost * (1 + _ROUNDING))
    return Saving(
        policy=other.request.policy,
        spec_tokens=other.request.spec_tokens,
        time_frac=1 - best.cost / cost,
        graphs=graphs - len(best.plan.buckets),
        time_frac_at_same_graphs=1 - frontier.best(graphs).cost / cost,
        graphs_at_same_time=graphs if no_slower is None else min(no_slower, graphs),
    )
