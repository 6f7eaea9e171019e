"""Gather what ``cgbench plan`` is asked, with an engine's defaults or a launch line behind it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cgbench.errors import BadInputError, PlanError
from cgbench.planning.admission import Admission, admit
from cgbench.planning.costs import Costs
from cgbench.planning.engine_defaults import Given, raise_hint, with_defaults
from cgbench.planning.gpus import Gpu
from cgbench.planning.graph_memory import STATED, GraphMemory
from cgbench.planning.launch_lines import read_launch
from cgbench.planning.phases import phases_of
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies import plan
from cgbench.planning.request_trace import RequestTrace, StepLog, Workload
from cgbench.planning.study import Outcome, outcome_of, raise_if_all_refused, requests_for
from cgbench.planning.tier_plans import deployment_of


@dataclass(frozen=True)
class Asked:
    """An ``Asked`` is one question to the planner: a request and what surrounds it.

    ``notes`` and ``warnings`` describe what the request took from elsewhere. ``error`` is set if
    the engine refuses it. ``costs`` are the measured costs by draft length.
    """

    request: PlanRequest
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: PlanError | None = None
    costs: Mapping[int, Costs] | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the draft lengths whose costs count: the request's and those of its schedule."""
        schedule = self.request.schedule
        return tuple({self.request.spec_tokens, *(schedule.lengths if schedule else ())})

    def with_costs(self, known: Mapping[int, Costs]) -> "Asked":
        """Return the same question with the costs of its draft lengths."""
        request = replace(self.request, costs=known[self.request.spec_tokens])
        return replace(self, request=request, costs=known)


@dataclass(frozen=True, slots=True)
class Budget:
    """A ``Budget`` limits what the policy ``optimal`` may capture. None sets no limit."""

    max_graphs: int | None = None
    max_memory_bytes: int | None = None
    max_capture_s: float | None = None

    def of(self, request: PlanRequest) -> PlanRequest:
        """Return the request with this budget."""
        return replace(
            request,
            max_graphs=self.max_graphs,
            max_memory_bytes=self.max_memory_bytes,
            max_capture_s=self.max_capture_s,
        )


NO_ENGINES = ("exact", "optimal", "scaled")
"""These policies may stand beside a launch line. They need nothing but its k and its requests."""


def asked_of_line(
    line: str | None,
    config: Path | None,
    gpu: Gpu | None,
    policies: Sequence[str],
    budget: Budget,
) -> list[Asked]:
    """Return a launch line's question, and beside it those of policies that belong to no engine.

    One of ``policies`` may be another release of the line's engine. Raise ``BadInputError`` for a
    line or policies that cannot be used, and ``PlanError`` for what the engine refuses.
    """
    releases = [name for name in policies if name not in NO_ENGINES]
    beside = [name for name in policies if name in NO_ENGINES]
    if len(releases) > 1:
        raise BadInputError(f"--policy {releases[1]}: --from starts one engine. Drop it")
    launch = read_launch(line, config, gpu, releases[0] if releases else None)
    own = Asked(launch.request, launch.notes, launch.warnings)
    k, most = launch.request.spec_tokens, launch.request.max_batch_size
    bare = budget.of(
        PlanRequest(k, most, max_num_batched_tokens=own.request.max_num_batched_tokens)
    )
    if not beside and budget != Budget():
        raise BadInputError("--max-graphs, --max-memory, --max-capture-seconds: of optimal alone")
    return [own, *(Asked(each) for each in requests_for(bare, beside, [k]))]


def defaulted(request: PlanRequest, gpu: Gpu | None, given: Given) -> Asked:
    """Return the request with the engine's defaults for ``gpu``. Without a GPU it stays as it is.

    A refusal by the engine is kept in the result's ``error``.
    """
    if gpu is None:
        return Asked(request)
    try:
        found = with_defaults(request, gpu, given)
    except PlanError as error:
        return Asked(request, error=error)
    return Asked(found.request, (*found.notes, *raise_hint(found.request)))


def study_asked(
    asked: Iterable[Asked],
    workload: Workload | None,
    acceptance_length: float | None,
    memory: GraphMemory = STATED,
) -> list[Outcome]:
    """Return the outcome of every question, in order.

    Raise the first refusal if every question is refused. Raise ``BadInputError`` for an acceptance
    length without a request trace.
    """
    if acceptance_length is not None and not isinstance(workload, RequestTrace):
        raise BadInputError("--acceptance-length: goes with a request trace in --concurrency")
    found = (_outcome(each, workload, acceptance_length) for each in asked)
    outcomes = [replace(each, memory=memory) for each in found]
    raise_if_all_refused(outcomes)
    return outcomes


def _outcome(asked: Asked, workload: Workload | None, acceptance_length: float | None) -> Outcome:
    request = asked.request
    if asked.error is not None:
        return Outcome(request, None, asked.error, asked.notes)
    admission = None
    if isinstance(workload, StepLog):
        found = workload.at(request.query_len, request.max_batch_size)
        request = replace(request, concurrency=found)
    elif isinstance(workload, RequestTrace):
        request, admission = _admitted(request, workload, acceptance_length)
    else:
        request = replace(request, concurrency=workload)
    outcome = outcome_of(request)
    if outcome.plan is None:
        return replace(outcome, notes=asked.notes)
    warnings = (*asked.warnings, *_unreplayed(request, admission), *outcome.plan.warnings)
    deployment = deployment_of(request, request.schedule) if request.schedule else None
    return replace(
        outcome,
        plan=replace(outcome.plan, warnings=warnings),
        notes=asked.notes,
        admission=admission,
        deployment=deployment,
        costs_by_length=asked.costs if deployment else None,
    )


def _unreplayed(request: PlanRequest, admission: Admission | None) -> Iterator[str]:
    """Yield a warning if a request with a draft schedule was replayed.

    Its lengths accept differently, and a run's one mean does not show that.
    """
    if admission and request.schedule:
        yield f"the replay drafts {request.spec_tokens} at every batch size, not by the schedule"


def _admitted(
    request: PlanRequest, trace: RequestTrace, acceptance_length: float | None
) -> tuple[PlanRequest, Admission | None]:
    """Return the request with the batch sizes that the trace makes on its own plan, and the replay.

    ``optimal`` has no plan before its workload is known. So it takes the workload of a plan with a
    graph at every size.
    """
    costs = request.costs
    measured = costs.acceptance_length if costs else None
    length = (measured or 1.0) if acceptance_length is None else acceptance_length
    if request.policy == "optimal":
        bare = replace(request, policy="exact", max_graphs=None)
        first = admit(bare, phases_of(bare, plan(bare)), trace, length)
        request = replace(request, concurrency=first.workload(trace.name))
    try:
        found = plan(request)
    except PlanError:
        return request, None
    admission = admit(request, phases_of(request, found), trace, length)
    return replace(request, concurrency=admission.workload(trace.name)), admission
