"""Fill in what each engine takes if a launch line leaves it out: ceilings, budgets, padding.

A policy alone plans what it is asked for. These are the engine's own values, so a plan made with
them has the same gaps that a user of the engine meets.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from cgbench.errors import RefusedPlanError
from cgbench.planning.gpus import Gpu
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies import fastdeploy, sglang, tensorrt_llm

VLLM_RELEASE = "vllm-0.33"
SGLANG_RUNNING_WITH_DRAFTS = 48
TENSORRT_LLM_REQUESTS = 2_048
TENSORRT_LLM_TOKENS = 8_192
FASTDEPLOY_REQUESTS = 8
LIGHTLLM_GRAPH_MAXIMUM = 256

_VLLM_LARGE_GIB = 160
_VLLM_USUAL_GIB = 70
_VLLM_SMALL_TOKENS = 2_048
_VLLM_SMALL_REQUESTS = 256

Given = Collection[str]
"""These are names of fields of ``PlanRequest`` that the user gave. The others take the engine's
default."""


@dataclass(frozen=True, slots=True)
class _Asked:
    request: PlanRequest
    gpu: Gpu | None
    given: frozenset[str]
    num_gpus: int
    factor: int


@dataclass(frozen=True, slots=True)
class Defaulted:
    """A ``Defaulted`` is a request with the engine's defaults in it.

    ``notes`` holds a line on each default that the plan depends on.
    """

    request: PlanRequest
    notes: tuple[str, ...] = ()


def with_defaults(
    request: PlanRequest, gpu: Gpu | None, given: Given, num_gpus: int = 1, factor: int = 1
) -> Defaulted:
    """Return the request with the engine's own value for each field that ``given`` does not name.

    ``num_gpus`` share the model, and SGLang's maximum follows their number. ``factor`` multiplies
    vLLM's default budgets, because its throughput mode doubles them. A policy that belongs to no
    engine keeps its request. Raise ``RefusedPlanError`` for what the engine refuses at its start.
    """
    for prefix, rule in _RULES.items():
        if request.policy.startswith(prefix):
            gpus = max(num_gpus, request.tp_size)
            return rule(_Asked(request, gpu, frozenset(given), gpus, factor))
    return Defaulted(request)


def raise_hint(request: PlanRequest) -> Iterator[str]:
    """Yield the flag that would put the batches above the engine's maximum into a graph."""
    most = request.max_batch_size
    is_cut = request.graph_maximum is not None and request.graph_maximum < most
    for prefix, flag in _RAISES.items():
        if is_cut and request.policy.startswith(prefix):
            yield (
                f"batches above {request.graph_maximum} requests run eager. Raise it with "
                f"{flag.format(most)}"
            )


def _vllm(asked: _Asked) -> Defaulted:
    """Apply ``EngineArgs.get_batch_defaults`` for the API server."""
    request, gpu, given, notes = asked.request, asked.gpu, asked.given, []
    if "max_num_batched_tokens" not in given:
        request = replace(request, max_num_batched_tokens=_vllm_budget(gpu) * asked.factor)
        notes.append(f"max_num_batched_tokens {request.max_num_batched_tokens}, {_by(gpu)}")
    if "max_batch_size" not in given:
        most = 1024 if gpu is None or _is_usual(gpu) else _VLLM_SMALL_REQUESTS
        most = min(most * asked.factor, request.max_num_batched_tokens)
        request = replace(request, max_batch_size=most)
        notes.append(f"max_num_seqs {most}, {_by(gpu)}")
    if gpu and gpu.is_blackwell and request.policy not in ("vllm-0.18", "vllm-0.26"):
        request = replace(request, blackwell=True)
    if request.max_batch_size > request.max_num_batched_tokens:
        raise RefusedPlanError(
            request.policy,
            f"max_num_seqs {request.max_batch_size} above max_num_batched_tokens "
            f"{request.max_num_batched_tokens}. Lower one or raise the other",
        )
    return Defaulted(request, tuple(notes))


def _vllm_budget(gpu: Gpu | None) -> int:
    if gpu is None:
        return 8192
    if gpu.memory_gib >= _VLLM_LARGE_GIB:
        return 16_384
    return 8_192 if _is_usual(gpu) else _VLLM_SMALL_TOKENS


def _is_usual(gpu: Gpu) -> bool:
    """Check that vLLM gives the GPU the defaults of an H100 or more."""
    return gpu.memory_gib >= _VLLM_USUAL_GIB and not gpu.name.lower().startswith("a100")


def _vllm_ascend(asked: _Asked) -> Defaulted:
    """Apply vLLM's defaults for a device that is no large GPU."""
    request, notes = asked.request, tuple[str, ...]()
    if "max_num_batched_tokens" not in asked.given:
        request = replace(request, max_num_batched_tokens=_VLLM_SMALL_TOKENS)
    if "max_batch_size" not in asked.given:
        request = replace(request, max_batch_size=_VLLM_SMALL_REQUESTS)
        notes = (f"max_num_seqs {_VLLM_SMALL_REQUESTS}, the default on an NPU",)
    return Defaulted(request, notes)


def _sglang(asked: _Asked) -> Defaulted:
    """Apply ``handle_gpu_memory_settings`` and, with drafts, ``_handle_eagle_family``."""
    request, gpu, given, notes = asked.request, asked.gpu, asked.given, []
    has_list = bool(request.graph_sizes)
    if "graph_maximum" not in given and not has_list:
        maximum = sglang.default_maximum(gpu.memory_gib, asked.num_gpus) if gpu else 160
        if "max_batch_size" in given:
            maximum = min(maximum, request.max_batch_size)
        request = replace(request, graph_maximum=maximum)
        notes.append(f"cuda_graph_max_bs_decode {maximum}, {_by(gpu)}")
    if "max_batch_size" not in given:
        largest = request.graph_maximum or max(request.graph_sizes, default=1)
        most = SGLANG_RUNNING_WITH_DRAFTS if request.spec_tokens else largest
        request = replace(request, max_batch_size=most)
        notes.append(
            f"max_running_requests {most}, the default with drafts"
            if request.spec_tokens
            else f"max_running_requests follows the memory for KV, planned up to {most}"
        )
    return Defaulted(request, tuple(notes))


def _tensorrt_llm(asked: _Asked) -> Defaulted:
    request, given, notes = asked.request, asked.given, []
    if "max_batch_size" not in given:
        request = replace(request, max_batch_size=TENSORRT_LLM_REQUESTS)
        notes.append(f"max_batch_size {TENSORRT_LLM_REQUESTS}, the default")
    if "max_num_batched_tokens" not in given:
        request = replace(request, max_num_batched_tokens=TENSORRT_LLM_TOKENS)
    if "graph_maximum" not in given and not request.graph_sizes:
        request = replace(request, graph_maximum=tensorrt_llm.DEFAULT_MAX_REQUESTS)
        notes.append(f"graphs up to {tensorrt_llm.DEFAULT_MAX_REQUESTS} requests, the default")
    if "pad" not in given:
        request = replace(request, pad=False)
        notes.append("enable_padding false, the default: other batch sizes run eager")
    return Defaulted(request, tuple(notes))


def _fastdeploy(asked: _Asked) -> Defaulted:
    request, notes = asked.request, tuple[str, ...]()
    if "max_batch_size" not in asked.given:
        request = replace(request, max_batch_size=FASTDEPLOY_REQUESTS)
        notes = (f"max_num_seqs {FASTDEPLOY_REQUESTS}, the default",)
    if request.max_batch_size > fastdeploy.MAX_REQUESTS:
        raise RefusedPlanError(
            request.policy,
            f"--max-num-seqs {request.max_batch_size}: must be at most {fastdeploy.MAX_REQUESTS}",
        )
    return Defaulted(request, notes)


def _lightllm(asked: _Asked) -> Defaulted:
    request = asked.request
    if "graph_maximum" in asked.given:
        return Defaulted(request)
    maximum = min(LIGHTLLM_GRAPH_MAXIMUM, request.max_batch_size)
    return Defaulted(
        replace(request, graph_maximum=maximum), (f"graph_max_batch_size {maximum}, the default",)
    )


def _by(gpu: Gpu | None) -> str:
    if gpu is None:
        return "the default where --gpu is not given"
    return f"the default on {gpu.name} ({gpu.memory_gib:.0f} GiB)"


_RULES: dict[str, Callable[[_Asked], Defaulted]] = {
    "vllm-ascend": _vllm_ascend,
    "vllm-": _vllm,
    "sglang-": _sglang,
    "tensorrt-llm-": _tensorrt_llm,
    "fastdeploy-": _fastdeploy,
    "lightllm": _lightllm,
}

_RAISES = {
    "sglang-": "--cuda-graph-max-bs-decode {}",
    "tensorrt-llm-": "cuda_graph_config.max_batch_size: {}",
    "lightllm": "--graph_max_batch_size {}",
}
