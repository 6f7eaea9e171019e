"""Work out the graphs of every phase of an iteration: verify, draft 1, drafts 2..k.

An engine that captures the target and the draft model apart has graphs of each. So a batch size may
verify in a graph and draft without one. ``plan`` answers for the verify phase, and ``phases_of``
answers for all of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from cgbench.planning.plan import Bucket, CapturePlan, Coverage
from cgbench.planning.plan_request import CaptureMode, Drafting, PlanRequest
from cgbench.planning.policies import sglang, vllm, vllm_ascend
from cgbench.words import Phase

ONE_GRAPH = "one graph holds the target's forward and every draft"
FIRST_STEP_ALONE = "the engine captures the draft model's first step only"
NO_DRAFT_GRAPHS = "the engine captures no graph of such a draft model"
A_GRAPH_A_MODULE = "a graph for each MTP module, k + 1 tokens a request each"
RUNNER_V2 = "as runner V2 captures. Runner V1 drafts without full graphs"

# Runner V2 is the default for every model on NVIDIA's GPUs from 0.30 on, and for some before.
_RUNNER_V1 = ("vllm-0.18", "vllm-0.26", "vllm-0.28")


@dataclass(frozen=True)
class PhaseGraphs(Coverage):
    """A ``PhaseGraphs`` holds the graphs of one phase, and the batch sizes that they serve.

    ``query_len`` is how many tokens a request runs in the phase. ``graphs_per_bucket`` is above 1
    if each draft has a graph of its own. ``note`` is a line on what is particular about the phase.
    """

    phase: Phase
    query_len: int
    max_batch_size: int
    buckets: tuple[Bucket, ...]
    pads: bool = True
    graphs_per_bucket: int = 1
    note: str = ""

    @property
    def num_graphs(self) -> int:
        """Return how many graphs the engine captures for this phase."""
        return len(self.buckets) * self.graphs_per_bucket


@dataclass(frozen=True)
class PhasePlan:
    """A ``PhasePlan`` holds a plan together with the graphs of each of its phases.

    ``mixed_tokens`` are the token counts of graphs for batches that hold a prefill. These graphs
    are whole or in pieces, as the engine has them.
    """

    plan: CapturePlan
    phases: tuple[PhaseGraphs, ...]
    mixed_tokens: tuple[int, ...] = ()

    @property
    def num_graphs(self) -> int:
        """Return the number of decode graphs of all phases.

        Graphs of mixed batches are left out.
        """
        return sum(each.num_graphs for each in self.phases)

    @cached_property
    def eager_batch_sizes(self) -> tuple[int, ...]:
        """Return the batch sizes of 1..max_batch_size for which at least one phase has no graph."""
        holes = (
            size
            for phase in self.phases
            for span in phase.eager_spans
            for size in range(span.first, span.last + 1)
        )
        return tuple(sorted(set(holes)))

    def of(self, phase: Phase) -> PhaseGraphs | None:
        """Return the graphs of one phase, or None if the plan has no such phase."""
        return next((each for each in self.phases if each.phase is phase), None)


def phases_of(request: PlanRequest, plan: CapturePlan) -> PhasePlan:
    """Return all phases of ``plan``, which is the request's, by the rule of the request's policy.

    A policy that belongs to no engine serves every phase with its own buckets, as ``cgbench run``
    does.
    """
    return left_by_mode(request, _RULES.get(request.policy, _shared)(request, plan))


def left_by_mode(request: PlanRequest, found: PhasePlan) -> PhasePlan:
    """Return ``found`` with only the graphs that the request's capture mode has."""
    match request.capture_mode:
        case CaptureMode.NONE:
            return replace(found, phases=_emptied(found), mixed_tokens=())
        case CaptureMode.PIECES:
            return replace(found, phases=_emptied(found))
        case CaptureMode.DECODE_ONLY:
            return replace(found, mixed_tokens=())
    return found


def _emptied(found: PhasePlan) -> tuple[PhaseGraphs, ...]:
    return tuple(replace(each, buckets=()) for each in found.phases)


def ranges(sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of neighbouring numbers: 1, 2, 3, 7 are (1, 3) and (7,
    7).
    """
    for _, group in groupby(enumerate(sizes), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        yield numbers[0], numbers[-1]


def graphs_at(
    phase: Phase, request: PlanRequest, query_len: int, sizes: Iterable[int], note: str = ""
) -> PhaseGraphs:
    """Return the graphs of one phase, with a bucket at each of ``sizes``."""
    buckets = tuple(Bucket(size, size * query_len) for size in sorted(set(sizes)))
    return PhaseGraphs(
        phase, query_len, request.max_batch_size, buckets, pads=request.pad, note=note
    )


def in_phases(
    request: PlanRequest,
    verify: Iterable[int],
    first: Iterable[int],
    rest: Iterable[int],
    note: str = "",
) -> tuple[PhaseGraphs, ...]:
    """Return the graphs of the phases that k drafts have.

    There is no draft at k = 0, and only draft 1 at k = 1. A later draft step runs ``tree_width``
    tokens a request. A way of drafting without a chain has fewer phases.
    """
    q, k, drafting = request.query_len, request.spec_tokens, request.drafting
    found = [graphs_at(Phase.VERIFY, request, q, verify, note)]
    without = NO_DRAFT_GRAPHS if drafting is Drafting.WITHOUT_GRAPHS else ""
    if k and drafting is not Drafting.WITHOUT_MODEL:
        found.append(graphs_at(Phase.DRAFT_FIRST, request, q, () if without else first, without))
    if k > 1 and drafting in (Drafting.CHAIN, Drafting.WITHOUT_GRAPHS):
        width = request.tree_width
        found.append(graphs_at(Phase.DRAFT_REST, request, width, () if without else rest, without))
    return tuple(found)


def _shared(request: PlanRequest, plan: CapturePlan) -> PhasePlan:
    sizes = plan.batch_sizes
    return PhasePlan(plan, in_phases(request, sizes, sizes, sizes))


def _whole(request: PlanRequest, plan: CapturePlan) -> PhasePlan:
    """Return TensorRT-LLM's phases for MTP, whose drafts run inside the target's graph."""
    phase = Phase.ITERATION if request.spec_tokens else Phase.VERIFY
    note = ONE_GRAPH if request.spec_tokens else ""
    found = graphs_at(phase, request, request.query_len, plan.batch_sizes, note)
    return PhasePlan(plan, (found,))


def _vllm(request: PlanRequest, plan: CapturePlan) -> PhasePlan:
    """Return vLLM's phases, which all find their graphs in one list of tokens."""
    tokens, sizes = vllm.token_list(request), plan.batch_sizes
    rest = vllm.uniform_graphs(tokens, 1, request.max_batch_size)
    note = RUNNER_V2 if request.policy in _RUNNER_V1 else ""
    return PhasePlan(plan, in_phases(request, sizes, sizes, rest, note), tuple(tokens))


def _vllm_ascend(request: PlanRequest, plan: CapturePlan) -> PhasePlan:
    tokens = vllm_ascend.token_list(request)
    rest = [size for size in tokens if size <= request.max_batch_size]
    sizes = plan.batch_sizes
    return PhasePlan(plan, in_phases(request, sizes, sizes, rest), tuple(tokens))


def _sglang(request: PlanRequest, plan: CapturePlan) -> PhasePlan:
    """Return SGLang's phases.

    Draft 1 is the extend after verify, and drafts 2..k share one graph.
    """
    drafts = sglang.captured(request, 1)
    found = in_phases(request, plan.batch_sizes, drafts, drafts)
    if request.module_per_draft and request.spec_tokens > 1:
        found = (*found[:2], _extends(request, drafts))
    return PhasePlan(plan, found)


def _extends(request: PlanRequest, sizes: Iterable[int]) -> PhaseGraphs:
    """Return the later drafts of multi-layer mode.

    Every later module extends over the verified positions again.
    """
    q = request.query_len
    return PhaseGraphs(
        Phase.DRAFT_REST,
        q,
        request.max_batch_size,
        tuple(Bucket(size, size * q) for size in sizes),
        pads=request.pad,
        graphs_per_bucket=request.spec_tokens - 1,
        note=A_GRAPH_A_MODULE,
    )


def _fastdeploy(request: PlanRequest, plan: CapturePlan) -> PhasePlan:
    verify, *drafts = in_phases(request, plan.batch_sizes, plan.batch_sizes, ())
    found = [verify, *drafts[:1]]
    if drafts and request.spec_tokens > 1:
        found.append(graphs_at(Phase.DRAFT_REST, request, 1, (), FIRST_STEP_ALONE))
    return PhasePlan(plan, tuple(found))


PhaseRule = Callable[[PlanRequest, CapturePlan], PhasePlan]

_RULES: dict[str, PhaseRule] = {
    "fastdeploy-2.4": _fastdeploy,
    "fastdeploy-2.5": _fastdeploy,
    "sglang-0.5.23": _sglang,
    "tensorrt-llm-1.3": _whole,
    "vllm-0.18": _vllm,
    "vllm-0.26": _vllm,
    "vllm-0.28": _vllm,
    "vllm-0.30": _vllm,
    "vllm-0.31": _vllm,
    "vllm-0.33": _vllm,
    "vllm-ascend-0.30": _vllm_ascend,
}
