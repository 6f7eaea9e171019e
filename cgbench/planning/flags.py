"""Write a plan's sizes as the option of an engine, in that engine's unit, to paste."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cgbench.errors import BadInputError
from cgbench.planning.phase_optimum import phase_optimum, phases_at
from cgbench.planning.phases import PhaseGraphs
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.vllm import decode_graphs
from cgbench.words import Phase

FlagText = Callable[[CapturePlan], str]


def check_engine(engine: str) -> None:
    """Check that the option of this engine is known. Raise ``BadInputError`` if it is not."""
    if engine not in ENGINES:
        raise BadInputError(f"--flags {engine}: unknown. Choose one of {', '.join(ENGINES)}")


def flags_for(engine: str, plan: CapturePlan) -> str:
    """Return the option text of ``engine`` (see ``ENGINES``) for the plan's buckets.

    ``fastdeploy`` counts requests, as every version from 2.5 on does. For a plan of the policy
    fastdeploy-2.4 it counts tokens. Raise ``BadInputError`` for an unknown engine, and for a plan
    with no bucket.
    """
    check_engine(engine)
    if not plan.buckets:
        raise BadInputError(f"--flags {engine}: {plan.policy} captures nothing at this budget")
    if engine == "fastdeploy" and plan.policy == "fastdeploy-2.4":
        engine = "fastdeploy-2.4"
    return ENGINES[engine](plan)


def flag_warnings(engine: str, request: PlanRequest, plan: CapturePlan) -> Iterator[str]:
    """Yield a warning that names the plan's buckets that ``engine`` would not capture.

    Only vLLM drops any. Its list is planned back with the rules of 0.33.
    """
    if engine != "vllm":
        return
    captured = decode_graphs(request, _vllm_tokens(plan)).verify
    if dropped := sorted(set(plan.batch_sizes) - set(captured)):
        yield (
            f"vLLM drops sizes over --max-num-batched-tokens {request.max_num_batched_tokens}: "
            f"no graph for {', '.join(map(str, dropped))} requests. Raise it"
        )


@dataclass(frozen=True, slots=True)
class Option:
    """An ``Option`` is text to paste into an engine's launch line, with the warnings about it."""

    text: str
    warnings: tuple[str, ...]


def option_of(engine: str, request: PlanRequest, plan: CapturePlan) -> Option:
    """Return the option of ``engine`` for a request's plan.

    vLLM's one list may serve each phase with buckets of its own. So ``optimal`` chooses them by
    phase there, with as many graphs in all as the plan has buckets in every phase. Raise
    ``BadInputError`` for an unknown engine, and for a plan with no bucket.
    """
    text = flags_for(engine, plan)
    if engine != "vllm" or not by_phase(request):
        return Option(text, tuple(flag_warnings(engine, request, plan)))
    found = phase_optimum(request, len(plan.buckets) * len(phases_at(request.spec_tokens)))
    return Option(union_for_vllm(found.phases), tuple(union_warnings(request, found.phases)))


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


def _fastdeploy(plan: CapturePlan) -> str:
    """Write the option for FastDeploy 2.5 and later in requests, which the engine scales (pull
    request 7215).
    """
    return _graph_optimization(plan.batch_sizes)


def _fastdeploy_2_4(plan: CapturePlan) -> str:
    """Write the option for FastDeploy 2.4 in tokens, taken as they are.

    The engine drops sizes over its cap of 512.
    """
    return _graph_optimization(_tokens(plan))


def _vllm(plan: CapturePlan) -> str:
    """Write the option for vLLM in tokens: the sizes of verify and of drafts 2..k in one list."""
    return _vllm_option(_vllm_tokens(plan))


def _vllm_option(tokens: tuple[int, ...]) -> str:
    return f"--compilation-config '{{\"cudagraph_capture_sizes\": {_listed(tokens)}}}'"


def _vllm_tokens(plan: CapturePlan) -> tuple[int, ...]:
    """Return n * (k + 1) tokens for verify and draft 1, and with drafts n too.

    Drafts 2..k run one token a request and look for their graphs in the same list.
    """
    later_drafts = plan.batch_sizes if plan.spec_tokens else ()
    return tuple(sorted({*_tokens(plan), *later_drafts}))


def _sglang(plan: CapturePlan) -> str:
    """Write the option for SGLang in requests.

    0.5.23 refuses the older --cuda-graph-bs as ambiguous.
    """
    return f"--cuda-graph-bs-decode {' '.join(map(str, plan.batch_sizes))}"


def _tensorrt_llm(plan: CapturePlan) -> str:
    """Write the option for TensorRT-LLM in requests, as YAML for ``--config``
    (``extra_llm_api_options``).
    """
    return (
        "cuda_graph_config:\n"
        f"  enable_padding: {'true' if plan.pads else 'false'}\n"
        f"  batch_sizes: {_listed(plan.batch_sizes)}"
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


def _tokens(plan: CapturePlan) -> tuple[int, ...]:
    return tuple(bucket.num_tokens for bucket in plan.buckets)


def _listed(sizes: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, sizes))}]"
