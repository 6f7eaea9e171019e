"""Write a plan's sizes as the option of an engine, in that engine's unit, to paste."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cgbench.errors import BadInputError, RefusedPlanError
from cgbench.planning.phase_optimum import phase_optimum, phases_at
from cgbench.planning.phases import PhaseGraphs
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies import plan
from cgbench.planning.policies.fastdeploy import MAX_REQUESTS
from cgbench.planning.policies.vllm import decode_graphs
from cgbench.words import Phase

_READ_BY = {
    "fastdeploy": "fastdeploy-2.5",
    "fastdeploy-2.4": "fastdeploy-2.4",
    "sglang": "sglang-0.5.23",
    "tensorrt-llm": "tensorrt-llm-1.3",
}
"""The policy that holds how an engine reads a user's own list."""

FlagText = Callable[[CapturePlan], str]


def check_engine(engine: str) -> None:
    """Check that the option of this engine is known. Raise ``BadInputError`` if it is not."""
    if engine not in ENGINES:
        raise BadInputError(f"--flags {engine}: unknown. Choose one of {', '.join(ENGINES)}")


def flags_for(engine: str, found: CapturePlan) -> str:
    """Return the option text of ``engine`` (see ``ENGINES``) for the plan's buckets.

    ``fastdeploy`` counts requests, as every version from 2.5 on does. For a plan of the policy
    fastdeploy-2.4 it counts tokens. Raise ``BadInputError`` for an unknown engine, and for a plan
    with no bucket.
    """
    check_engine(engine)
    if not found.buckets:
        raise BadInputError(f"--flags {engine}: {found.policy} captures nothing at this budget")
    return ENGINES[_release_of(engine, found)](found)


def _release_of(engine: str, found: CapturePlan) -> str:
    """Return the engine whose option it is: FastDeploy's plan of 2.4 is for that release."""
    return found.policy if engine == "fastdeploy" and found.policy in ENGINES else engine


def flag_warnings(engine: str, request: PlanRequest, found: CapturePlan) -> Iterator[str]:
    """Yield a warning that names the plan's buckets that ``engine`` would not capture.

    The list is planned back with the rules of the engine's release: vLLM's of 0.33, and of the
    others those of ``_READ_BY``. Raise ``BadInputError`` if the engine refuses it.
    """
    if engine == "vllm":
        captured = decode_graphs(request, _vllm_tokens(found)).verify
        over = f"vLLM drops sizes over --max-num-batched-tokens {request.max_num_batched_tokens}"
        cure = ". Raise it"
    else:
        captured = _planned_back(engine, request, found).batch_sizes
        over, cure = f"{engine} drops sizes of this list by its own limits", ""
    if dropped := sorted(set(found.batch_sizes) - set(captured)):
        yield f"{over}: no graph for {', '.join(map(str, dropped))} requests{cure}"
    if engine == "fastdeploy" and request.max_batch_size > MAX_REQUESTS:
        yield f"FastDeploy refuses to start with --max-num-seqs above {MAX_REQUESTS}"


def _planned_back(engine: str, request: PlanRequest, found: CapturePlan) -> CapturePlan:
    """Return what ``engine`` makes of the option's sizes. Raise ``BadInputError`` if it refuses."""
    policy = _READ_BY[engine]
    asked = PlanRequest(
        request.spec_tokens,
        request.max_batch_size,
        policy,
        max_num_batched_tokens=request.max_num_batched_tokens,
        pad=found.pads,
        graph_sizes=_tokens(found) if policy == "fastdeploy-2.4" else found.batch_sizes,
    )
    try:
        return plan(asked)
    except RefusedPlanError as error:
        raise BadInputError(f"--flags {engine}: {error}") from error


@dataclass(frozen=True, slots=True)
class Option:
    """An ``Option`` is text to paste into an engine's launch line, with the warnings about it."""

    text: str
    warnings: tuple[str, ...]


def option_of(engine: str, request: PlanRequest, found: CapturePlan) -> Option:
    """Return the option of ``engine`` for a request's plan.

    vLLM's one list may serve each phase with buckets of its own. So ``optimal`` chooses them by
    phase there, with as many graphs in all as the plan has buckets in every phase. Raise
    ``BadInputError`` for an unknown engine, and for a plan with no bucket.
    """
    text, engine = flags_for(engine, found), _release_of(engine, found)
    if engine != "vllm" or not by_phase(request):
        return Option(text, tuple(flag_warnings(engine, request, found)))
    best = phase_optimum(request, len(found.buckets) * len(phases_at(request.spec_tokens)))
    return Option(union_for_vllm(best.phases), tuple(union_warnings(request, best.phases)))


def by_phase(request: PlanRequest) -> bool:
    """Check that the best list may differ by phase.

    That needs the policy ``optimal``, drafts, and no budget of memory or time.
    """
    unlimited = request.max_memory_bytes is None and request.max_capture_s is None
    return request.policy == "optimal" and request.spec_tokens > 0 and unlimited


def union_for_vllm(phases: Iterable[PhaseGraphs]) -> str:
    """Return vLLM's option from lists that differ by phase: one list of tokens for them all."""
    return _vllm_option(_union(phases))


def union_warnings(request: PlanRequest, phases: Iterable[PhaseGraphs]) -> Iterator[str]:
    """Yield a warning that names the buckets of a phase that vLLM would not capture from the union.

    The union is planned back with vLLM's rules. Only the first phase with a dropped bucket is
    named.
    """
    phases = tuple(phases)
    captured = decode_graphs(request, _union(phases))
    for phase in phases:
        is_rest = phase.phase is Phase.DRAFT_REST
        kept = captured.later_drafts if is_rest else captured.verify
        if dropped := sorted(set(phase.batch_sizes) - set(kept)):
            yield (
                f"vLLM drops sizes over --max-num-batched-tokens {request.max_num_batched_tokens}: "
                f"no graph of {phase.phase} for {', '.join(map(str, dropped))} requests. Raise it"
            )
            return


def _union(phases: Iterable[PhaseGraphs]) -> tuple[int, ...]:
    return tuple(sorted({bucket.num_tokens for each in phases for bucket in each.buckets}))


def _fastdeploy(found: CapturePlan) -> str:
    """Write the option for FastDeploy 2.5 and later in requests, which the engine scales (pull
    request 7215).
    """
    return _graph_optimization(found.batch_sizes)


def _fastdeploy_2_4(found: CapturePlan) -> str:
    """Write the option for FastDeploy 2.4 in tokens, taken as they are.

    The engine drops sizes over its cap of 512.
    """
    return _graph_optimization(_tokens(found))


def _vllm(found: CapturePlan) -> str:
    """Write the option for vLLM in tokens: the sizes of verify and of drafts 2..k in one list."""
    return _vllm_option(_vllm_tokens(found))


def _vllm_option(tokens: tuple[int, ...]) -> str:
    return f"--compilation-config '{{\"cudagraph_capture_sizes\": {_listed(tokens)}}}'"


def _vllm_tokens(found: CapturePlan) -> tuple[int, ...]:
    """Return n * (k + 1) tokens for verify and draft 1, and with drafts n too.

    Drafts 2..k run one token a request and look for their graphs in the same list.
    """
    later_drafts = found.batch_sizes if found.spec_tokens else ()
    return tuple(sorted({*_tokens(found), *later_drafts}))


def _sglang(found: CapturePlan) -> str:
    """Write the option for SGLang in requests.

    0.5.23 refuses the older --cuda-graph-bs as ambiguous.
    """
    return f"--cuda-graph-bs-decode {' '.join(map(str, found.batch_sizes))}"


def _tensorrt_llm(found: CapturePlan) -> str:
    """Write the option for TensorRT-LLM in requests, as YAML for ``--config``
    (``extra_llm_api_options``).
    """
    return (
        "cuda_graph_config:\n"
        f"  enable_padding: {'true' if found.pads else 'false'}\n"
        f"  batch_sizes: {_listed(found.batch_sizes)}"
    )


ENGINES: dict[str, FlagText] = {
    "fastdeploy": _fastdeploy,
    "fastdeploy-2.4": _fastdeploy_2_4,
    "vllm": _vllm,
    "sglang": _sglang,
    "tensorrt-llm": _tensorrt_llm,
}


def _graph_optimization(sizes: tuple[int, ...]) -> str:
    return f"--graph-optimization-config '{{\"cudagraph_capture_sizes\": {_listed(sizes)}}}'"


def _tokens(found: CapturePlan) -> tuple[int, ...]:
    return tuple(bucket.num_tokens for bucket in found.buckets)


def _listed(sizes: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, sizes))}]"
