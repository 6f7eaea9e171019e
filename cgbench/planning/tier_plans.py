"""Count and cost all graphs of one deployment whose draft length follows the batch size."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from cgbench.planning.costs import Costs
from cgbench.planning.draft_schedule import DraftSchedule
from cgbench.planning.expected import weights_of
from cgbench.planning.phase_optimum import cost_at
from cgbench.planning.phases import PhasePlan, in_phases, left_by_mode, phases_of
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies import plan, vllm
from cgbench.planning.policies.build import from_requests


@dataclass(frozen=True, slots=True)
class LengthGraphs:
    """A ``LengthGraphs`` holds the graphs of one draft length, and which batch sizes may run it."""

    spec_tokens: int
    phases: PhasePlan
    runs: tuple[int, ...]

    @property
    def eager_batch_sizes(self) -> tuple[int, ...]:
        """Return the batch sizes that run this length but have no graph in some phase."""
        return tuple(sorted({*self.phases.eager_batch_sizes} & {*self.runs}))


@dataclass(frozen=True)
class Deployment:
    """A ``Deployment`` holds a draft schedule and its graphs, one set for each draft length."""

    schedule: DraftSchedule
    lengths: tuple[LengthGraphs, ...]

    @property
    def num_graphs(self) -> int:
        """Return the number of decode graphs of all draft lengths."""
        return sum(each.phases.num_graphs for each in self.lengths)

    @property
    def eager_batch_sizes(self) -> tuple[int, ...]:
        """Return the batch sizes that run eager in some phase at some length of theirs."""
        return tuple(sorted({n for each in self.lengths for n in each.eager_batch_sizes}))


def deployment_of(request: PlanRequest, schedule: DraftSchedule) -> Deployment:
    """Return all graphs of a deployment with this schedule, by the rule of the request's policy.

    A batch size that may run several lengths has graphs of each.
    """
    found = []
    for k in schedule.lengths:
        at_k = replace(request, spec_tokens=k, schedule=schedule)
        runs = tuple(n for n in range(1, request.max_batch_size + 1) if k in _lengths_at(at_k, n))
        found.append(LengthGraphs(k, _graphs(at_k, schedule), runs))
    return Deployment(schedule, tuple(found))


def expected_cost(
    request: PlanRequest, found: Deployment, costs: Mapping[int, Costs] | None = None
) -> float:
    """Return the mean cost of an iteration over the workload.

    The lengths that a batch size may run count alike. ``costs`` are those of each draft length.
    Without them an iteration costs its tokens.
    """
    weights, total = weights_of(request), 0.0
    for each in found.lengths:
        k = each.spec_tokens
        at_k = replace(
            request,
            spec_tokens=k,
            costs=(costs or {}).get(k) or Costs.in_tokens(k + 1),
            schedule=found.schedule,
        )
        for n in each.runs:
            share = weights[n - 1] / len(_lengths_at(at_k, n))
            total += share * cost_at(at_k, each.phases, n)
    return total


def _lengths_at(request: PlanRequest, batch_size: int) -> tuple[int, ...]:
    """Return the lengths that so many requests may run.

    SGLang pads to its list before it chooses.
    """
    assert request.schedule
    if request.policy.startswith("sglang"):
        bucket = _padded(request).bucket_for(batch_size)
        batch_size = bucket.batch_size if bucket else batch_size
    return request.schedule.at(batch_size)


@cache
def _padded(request: PlanRequest) -> CapturePlan:
    return plan(request)


def _graphs(request: PlanRequest, schedule: DraftSchedule) -> PhasePlan:
    if request.policy.startswith("vllm-0"):
        return _of_one_list(request)
    whole = phases_of(request, plan(request))
    if request.policy.startswith("tensorrt-llm"):
        return _kept(request, whole, _exact_sizes(request, schedule, whole.plan))
    if request.policy.startswith("sglang"):
        return _kept(request, whole, _sizes_of_the_set(request, schedule, whole.plan))
    return whole


def _of_one_list(request: PlanRequest) -> PhasePlan:
    """Return vLLM's graphs of one length, which every length looks for in the whole list.

    The first draft's graphs exist at each length. They exist at k = 0 too, where nothing runs them.
    """
    tokens = vllm.token_list(request)
    verify = vllm.uniform_graphs(tokens, request.query_len, request.max_batch_size)
    rest = vllm.uniform_graphs(tokens, 1, request.max_batch_size)
    bare = from_requests(request, verify)
    found = PhasePlan(bare, in_phases(request, verify, verify, rest), tuple(tokens))
    return left_by_mode(request, found)


def _exact_sizes(
    request: PlanRequest, schedule: DraftSchedule, found: CapturePlan
) -> tuple[int, ...]:
    """Return TensorRT-LLM's sizes: each batch size is captured at its own draft length alone."""
    k = request.spec_tokens
    return tuple(size for size in found.batch_sizes if schedule.at(size) == (k,))


def _sizes_of_the_set(
    request: PlanRequest, schedule: DraftSchedule, found: CapturePlan
) -> tuple[int, ...]:
    """Return SGLang's sizes: the batch sizes whose set has this length, or all at the
    first length.
    """
    k = request.spec_tokens
    if k == schedule.first_length:
        return found.batch_sizes
    return tuple(n for n in found.batch_sizes if k in schedule.at(n))


def _kept(request: PlanRequest, found: PhasePlan, sizes: tuple[int, ...]) -> PhasePlan:
    phases = (
        replace(each, buckets=tuple(b for b in each.buckets if b.batch_size in sizes))
        for each in found.phases
    )
    bare = from_requests(request, sizes, pads=request.pad)
    return PhasePlan(bare, tuple(phases), found.mixed_tokens)
