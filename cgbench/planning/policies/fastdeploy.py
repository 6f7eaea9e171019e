"""Plan as FastDeploy does (PaddlePaddle/FastDeploy, ``fastdeploy/config.py``).

``--tp`` matters with sequence-parallel MoE alone. There the engine keeps the sizes, in tokens, that
tp divides. It switches that mode off if max_num_seqs is below tp
(``GraphOptimizationConfig.filter_capture_size``). Here ``tp_size`` above 1 means that the mode is
on.
"""

from collections.abc import Iterable

from cgbench.errors import RefusedPlanError
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import from_tokens, truncated
from cgbench.planning.policies.registry import policy

CANDIDATES: tuple[int, ...] = (
    1,
    2,
    4,
    *range(8, 129, 8),
    *range(144, 257, 16),
    *range(288, 1025, 32),
)
"""FastDeploy starts from these batch sizes, before it scales them by k + 1."""

TP_MODE = "sequence-parallel MoE"

MAX_CAPTURE = 512
"""No capture size is above this cap, which counts tokens in 2.4 and requests from 2.5."""

MAX_REQUESTS = 256
"""The engine refuses a larger max_num_seqs. A plan does not, so that its rule can be seen."""

PREFILL_TOKENS = (1, 2, 4, 8)
"""The prefill graphs hold these token counts. They exist if the static graph is split."""


@policy("fastdeploy-2.4", tp_mode=TP_MODE, release="2.4")
def fastdeploy_2_4(request: PlanRequest) -> CapturePlan:
    """Plan FastDeploy 2.4's list, faults included (pull requests 5624 and 5670).

    The list holds the candidates times k + 1, and then min(512, max_num_seqs * (k + 1)) tokens
    unscaled. Larger sizes are dropped, and the list descends. A listed size that k + 1 does not
    divide is captured as size // (k + 1) requests. Raise ``RefusedPlanError`` if max_num_seqs * (k
    + 1) is odd with drafts, because that engine asserts that it is even.
    """
    q = request.query_len
    step_tokens = request.max_batch_size * q
    if request.spec_tokens and step_tokens % 2:
        raise RefusedPlanError(
            request.policy,
            f"an odd token count: --max-num-seqs {request.max_batch_size} times {q} is "
            f"{step_tokens}. Make --max-num-seqs even",
        )
    cap = min(MAX_CAPTURE, step_tokens)
    listed = request.graph_sizes or (*(size * q for size in CANDIDATES), cap)
    tokens = _up_to(request, listed, cap, "tokens")
    # If k + 1 does not divide the cap, the warning about that covers the cut already.
    warnings = () if cap % q else truncated(request, cap)
    return from_tokens(request, _descending(request, tokens), warnings)


@policy("fastdeploy-2.5", tp_mode=TP_MODE, release="2.5")
def fastdeploy_2_5(request: PlanRequest) -> CapturePlan:
    """Plan FastDeploy 2.5's list, which counts candidates and cap in requests (pull request 7215).

    The cap is min(512, max_num_seqs) requests and is appended. Larger candidates are dropped, every
    size is multiplied by k + 1, and the list descends. So each size is a whole number of requests.
    """
    q = request.query_len
    cap = min(MAX_CAPTURE, request.max_batch_size)
    sizes = _up_to(request, request.graph_sizes or (*CANDIDATES, cap), cap, "requests")
    tokens = {size * q for size in sizes}
    return from_tokens(request, _descending(request, tokens), truncated(request, cap * q))


def _up_to(request: PlanRequest, listed: Iterable[int], cap: int, unit: str) -> set[int]:
    kept = {size for size in listed if size <= cap}
    if not kept:
        raise RefusedPlanError(
            request.policy,
            f"cudagraph_capture_sizes that are all above {cap} {unit}. List a smaller one",
        )
    return kept


def _descending(request: PlanRequest, tokens: Iterable[int]) -> list[int]:
    tp = request.tp_size if request.max_batch_size >= request.tp_size else 1
    return sorted((size for size in tokens if size % tp == 0), reverse=True)
