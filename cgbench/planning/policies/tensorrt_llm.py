"""Plan as TensorRT-LLM does (NVIDIA/TensorRT-LLM, ``tensorrt_llm/llmapi/llm_args.py``).

Sizes are requests. Tensor parallelism has no rule here, because any batch size is captured on every
rank.
"""

from collections.abc import Iterator

from cgbench.errors import RefusedPlanError
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import from_requests, over_token_budget
from cgbench.planning.policies.registry import policy

DEFAULT_MAX_REQUESTS = 128
"""The list ends here if ``cuda_graph_config`` gives neither batch sizes nor a maximum."""


@policy("tensorrt-llm-1.3", reads="pad max_num_batched_tokens", release="1.3.0rc")
def tensorrt_llm_1_3(request: PlanRequest) -> CapturePlan:
    """Plan TensorRT-LLM 1.3's list, with ``enable_padding`` or without.

    Padded, it is 1, 2, 4, by 8 to 128, then by 64. Not padded, it is 1..32, 64, 128, then powers of
    two. Then a batch size that is not on the list runs eager, so there are holes below the largest
    graph. Either way the maximum is appended (``_generate_cuda_graph_batch_sizes``). A graph that
    would not fit max_batch_size or max_num_tokens is dropped. Padded, the largest batch that fits
    takes its place (``_filter_cuda_graph_batch_sizes`` in ``_torch/pyexecutor/model_engine.py``).
    If no maximum is given, max_num_seqs stands for it.
    """
    fits = min(request.max_batch_size, request.max_num_batched_tokens // request.query_len)
    listed = _listed(request)
    sizes = {size for size in listed if size <= fits}
    if request.pad and fits and max(listed) > fits:
        sizes.add(fits)
    warnings = [*_default_maximum(request), *over_token_budget(request)]
    return from_requests(request, sorted(sizes), warnings, pads=request.pad)


def _listed(request: PlanRequest) -> list[int]:
    if request.graph_sizes:
        return _of_the_user(request)
    most = request.graph_maximum or request.max_batch_size
    return sorted({*(_padded(most) if request.pad else _unpadded(most)), most})


def _of_the_user(request: PlanRequest) -> list[int]:
    listed = sorted(set(request.graph_sizes))
    if request.graph_maximum is not None and request.graph_maximum != listed[-1]:
        raise RefusedPlanError(
            request.policy,
            f"cuda_graph_config.max_batch_size {request.graph_maximum} beside batch_sizes that end "
            f"at {listed[-1]}. Give one of them",
        )
    return listed


def _default_maximum(request: PlanRequest) -> Iterator[str]:
    most = request.max_batch_size
    if most > DEFAULT_MAX_REQUESTS and not (request.graph_maximum or request.graph_sizes):
        yield (
            f"TensorRT-LLM's default list ends at {DEFAULT_MAX_REQUESTS} requests, whatever "
            f"max_batch_size is. This plan is that of cuda_graph_config.max_batch_size {most}"
        )


def _padded(most: int) -> list[int]:
    sizes = [*(1, 2, 4), *range(8, 129, 8), *range(192, most + 1, 64)]
    return [size for size in sizes if size <= most]


def _unpadded(most: int) -> list[int]:
    powers = [2**exponent for exponent in range(8, most.bit_length())]
    return [size for size in [*range(1, 33), 64, 128, *powers] if size <= most]
