"""Plan as SGLang does (sgl-project/sglang, ``python/sglang/srt``). Sizes are requests.

``--tp`` has a rule if the engine gathers across attention ranks (attention data parallelism, some
MoE modes). Then it keeps the batch sizes whose tokens the attention TP size divides. It counts the
requests up to a multiple of that size. The source is ``get_batch_sizes_to_capture`` in
``model_executor/runner/base_cuda_graph_runner.py``. Here ``tp_size`` above 1 means that it gathers.
"""

from collections.abc import Iterator

from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import from_requests
from cgbench.planning.policies.registry import policy

DEFAULT_MAX_REQUESTS = 256
"""This is the default maximum of a GPU with 60 to 160 GiB. Smaller GPUs have less, down to 8."""

DEFAULT_MAX_REQUESTS_TP_4 = 512
"""This is the default maximum from four GPUs on, and the most that any GPU has by default."""

# Each row is a memory in GiB, then two maxima for GPUs below it: with fewer than four GPUs, and
# from four on. The source is ``handle_gpu_memory_settings`` in ``arg_groups/memory_hook.py``.
_MAXIMUM_BY_GIB = (
    (20, 8, 8),
    (35, 48, 160),
    (60, 32, 160),
    (160, DEFAULT_MAX_REQUESTS, DEFAULT_MAX_REQUESTS_TP_4),
)

# Each row is a memory in GiB, then the tokens of a prefill chunk below it. They end the list of
# prefill graphs.
_PREFILL_BY_GIB = ((20, 2_048), (60, 4_096), (160, 8_192))
_PREFILL_MOST = 16_384


@policy(
    "sglang-0.5.23",
    reads="pad module_per_draft",
    tp_mode="a gather across attention ranks",
    release="0.5.23",
)
def sglang_0_5_23(request: PlanRequest) -> CapturePlan:
    """Plan SGLang 0.5.23's list (``arg_groups/cuda_graph_hook.py``), which is denser with drafts.

    With drafts it is 1..8, by 2 to 32, by 4 from 40 to 64, by 8 from 72 to 256, then by 16.
    Without, it is 1, 2, 4, 8, 12, by 8 from 16 to 256, by 16 from 272 to 496, then by 32. The
    maximum is appended. With padding disabled every batch size gets a graph of its own. If no
    maximum is given, max_num_seqs stands for ``--cuda-graph-max-bs-decode``.
    """
    sizes = captured(request, request.query_len)
    return from_requests(request, sizes, _default_maximum(request), pads=request.pad)


def captured(request: PlanRequest, width: int) -> list[int]:
    """Return the batch sizes that a runner captures if it runs ``width`` tokens a request.

    A list that reaches above the running requests is cut there, and their number is appended.
    Verify is aligned by its tokens. The runners of the draft model are aligned by requests.
    """
    listed, tp = set(_listed(request)), request.tp_size
    most = -(-request.max_batch_size // tp) * tp
    if max(listed) > most:
        listed.add(most)
    return sorted(size for size in listed if size <= most and size * width % tp == 0)


def default_maximum(memory_gib: float, tp_size: int) -> int:
    """Return the largest batch that SGLang captures on this GPU if no maximum is given."""
    for below_gib, maximum, from_tp_4 in _MAXIMUM_BY_GIB:
        if memory_gib < below_gib:
            return from_tp_4 if tp_size >= 4 else maximum
    return DEFAULT_MAX_REQUESTS_TP_4


def default_prefill_tokens(memory_gib: float) -> int:
    """Return the tokens of the largest prefill graph on this GPU.

    They are the default of --chunked-prefill-size.
    """
    found = (tokens for below_gib, tokens in _PREFILL_BY_GIB if memory_gib < below_gib)
    return next(found, _PREFILL_MOST)


def prefill_tokens(most: int) -> list[int]:
    """Return the token counts of the prefill graphs
    (``generate_prefill_cuda_graph_batch_sizes``).
    """
    steps = (
        *range(4, 33, 4),
        *range(48, 257, 16),
        *range(288, 513, 32),
        *range(576, 1025, 64),
        *range(1280, 4097, 256),
        *range(4608, most + 1, 512),
    )
    return [size for size in steps if size <= most]


def _listed(request: PlanRequest) -> list[int]:
    if request.graph_sizes:
        return list(request.graph_sizes)
    most = request.graph_maximum or request.max_batch_size
    if not request.pad:
        return [*range(1, most + 1)]
    candidates = _dense(most) if request.spec_tokens else _sparse(most)
    return [size for size in candidates if size < most] + [most]


def _default_maximum(request: PlanRequest) -> Iterator[str]:
    most, from_tp_4 = request.max_batch_size, request.tp_size >= 4
    given = request.graph_maximum or request.graph_sizes
    if not given and most > (DEFAULT_MAX_REQUESTS_TP_4 if from_tp_4 else DEFAULT_MAX_REQUESTS):
        yield (
            f"SGLang's default maximum follows GPU memory: {DEFAULT_MAX_REQUESTS} requests at 60 "
            f"to 160 GB, {DEFAULT_MAX_REQUESTS_TP_4} above or from --tp 4, less below. This plan "
            f"is that of --cuda-graph-max-bs-decode {most}"
        )


def _dense(most: int) -> list[int]:
    return [
        *range(1, 9),
        *range(10, 33, 2),
        *range(40, 65, 4),
        *range(72, 257, 8),
        *range(272, most + 1, 16),
    ]


def _sparse(most: int) -> list[int]:
    return [
        *(1, 2, 4, 8, 12),
        *range(16, 257, 8),
        *range(272, 497, 16),
        *range(512, most + 1, 32),
    ]
