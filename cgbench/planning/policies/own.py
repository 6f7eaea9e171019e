"""Plan by rules that belong to no engine: the default, every size, the caller's, and the best.

They serve any engine whose sizes can be set by hand (see ``cgbench.planning.flags``). Tensor
parallelism has no rule here.
"""

from cgbench.errors import PlanError
from cgbench.planning.optimal import best_batch_sizes
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import CaptureUnit, PlanRequest
from cgbench.planning.policies.build import from_requests, from_tokens
from cgbench.planning.policies.fastdeploy import CANDIDATES, MAX_CAPTURE
from cgbench.planning.policies.registry import policy


@policy("scaled")
def scaled(request: PlanRequest) -> CapturePlan:
    """Plan FastDeploy's candidates times k + 1, under a token cap that k + 1 always divides.

    The cap is min(512, max_batch_size * (k + 1)) tokens, rounded down to a multiple of k + 1. It is
    appended. So every listed size is a whole number of requests, and the largest batch that fits
    has a graph of its own. The rule mends the faults of ``fastdeploy-2.4``.
    """
    q = request.query_len
    cap = min(MAX_CAPTURE, request.max_batch_size * q) // q * q
    tokens = {size * q for size in CANDIDATES if size * q < cap} | {cap}
    return from_tokens(request, sorted(tokens))


@policy("exact")
def exact(request: PlanRequest) -> CapturePlan:
    """Plan a graph for every batch size, 1..max_batch_size: nothing padded, nothing eager.

    This is the lower bound on padding, with the most graphs. Only SGLang with padding disabled has
    this rule.
    """
    return from_requests(request, range(1, request.max_batch_size + 1))


@policy("optimal")
def optimal(request: PlanRequest) -> CapturePlan:
    """Plan the buckets of least expected iteration time under the request's workload and budget.

    The plan is exact, by dynamic programming (``cgbench.planning.optimal``). Without a budget it
    has a graph for every batch size that the workload holds. Raise ``PlanError`` for a budget of
    memory or time without measured costs.
    """
    return from_requests(request, best_batch_sizes(request))


@policy("explicit")
def explicit(request: PlanRequest) -> CapturePlan:
    """Plan the caller's own sizes, in requests or in tokens, each checked.

    Raise ``PlanError`` for a size in tokens that k + 1 does not divide. Raise it too for one below
    one request or above max_batch_size, because a graph over the KV room could never be replayed.
    """
    q = request.query_len
    if not request.capture_sizes:
        raise PlanError("--policy explicit needs --capture-sizes")
    in_tokens = request.capture_unit == CaptureUnit.TOKENS
    tokens = sorted({size if in_tokens else size * q for size in request.capture_sizes})
    for size in tokens:
        _check_explicit(request, size)
    return from_tokens(request, tokens)


def _check_explicit(request: PlanRequest, num_tokens: int) -> None:
    q = request.query_len
    if num_tokens < 1:
        raise PlanError("--capture-sizes: every size must be at least 1")
    if num_tokens % q:
        below, above = num_tokens // q * q, (num_tokens // q + 1) * q
        raise PlanError(
            f"--capture-sizes: {num_tokens} tokens are not a multiple of {q} "
            f"(--spec-tokens {request.spec_tokens} plus 1). "
            f"Use {f'{below} or {above}' if below else above}"
        )
    if num_tokens // q > request.max_batch_size:
        raise PlanError(
            f"--capture-sizes: {num_tokens // q} requests ({num_tokens} tokens) are over the KV "
            f"room, {request.max_batch_size} requests. Raise --max-num-seqs or drop that size"
        )
