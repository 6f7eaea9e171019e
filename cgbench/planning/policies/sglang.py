"""SGLang (sgl-project/sglang, ``python/sglang/srt``).

Sizes are requests. ``--tp``: where the engine gathers across attention ranks (attention data
parallelism, some MoE modes) it keeps the batch sizes whose tokens the attention TP size divides,
and counts the requests up to a multiple of it (``get_batch_sizes_to_capture`` in
``model_executor/runner/base_cuda_graph_runner.py``); otherwise tp has no rule. Here ``tp_size``
above 1 means that it gathers.
"""

from collections.abc import Iterator

from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import from_requests
from cgbench.planning.policies.registry import policy

DEFAULT_MAX_REQUESTS = 256
"""The default maximum of a GPU with 60 to 160 GB. Smaller GPUs have less, down to 8."""

DEFAULT_MAX_REQUESTS_TP_4 = 512
"""The same from four GPUs on, and the most that any GPU has by default."""


@policy("sglang-0.5.23", reads="pad", tp_mode="a gather across attention ranks")
def sglang_0_5_23(request: PlanRequest) -> CapturePlan:
    """SGLang 0.5.23's list (``server_args.py``), denser with speculation, maximum appended.

    With drafts 1..8, by 2 to 32, by 4 from 40 to 64, by 8 from 72 to 256, then by 16; without,
    1, 2, 4, 8, 12, by 8 from 16 to 256, by 16 from 272 to 496, then by 32. With padding disabled
    every batch size gets a graph of its own. max_num_seqs stands for ``--cuda-graph-max-bs``.
    """
    most = request.max_batch_size
    if not request.pad:
        candidates = [*range(1, most + 1)]
    else:
        candidates = _dense(most) if request.spec_tokens else _sparse(most)
    sizes = {size for size in candidates if size <= most} | {most}
    return from_requests(request, _aligned(request, sizes), _default_maximum(request))


def _default_maximum(request: PlanRequest) -> Iterator[str]:
    most, from_tp_4 = request.max_batch_size, request.tp_size >= 4
    if most > (DEFAULT_MAX_REQUESTS_TP_4 if from_tp_4 else DEFAULT_MAX_REQUESTS):
        yield (
            f"SGLang's default maximum follows GPU memory: {DEFAULT_MAX_REQUESTS} requests at 60 "
            f"to 160 GB, {DEFAULT_MAX_REQUESTS_TP_4} above or from --tp 4, less below; this plan "
            f"is that of --cuda-graph-max-bs {most}"
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


def _aligned(request: PlanRequest, sizes: set[int]) -> list[int]:
    tp = request.tp_size
    if tp > 1:
        sizes = sizes | {-(-request.max_batch_size // tp) * tp}
    return sorted(size for size in sizes if size * request.query_len % tp == 0)
