"""vLLM (vllm-project/vllm, ``vllm/config/vllm.py`` and ``vllm/config/compilation.py``).

Sizes are tokens. Decode replays a full graph only at an exact multiple of k + 1 tokens and at no
more than max_num_seqs requests; larger listed sizes serve mixed batches in pieces.

``--tp``: with the sequence-parallelism pass the engine keeps sizes that tp divides, and rounds to
multiples of max(k + 1, tp), which both must divide; without the pass tp has no rule. Here
``tp_size`` above 1 means that it is on.
"""

from collections.abc import Iterable

from cgbench.errors import PlanError
from cgbench.planning.plan import CapturePlan
from cgbench.planning.policies.build import (
    from_exact_tokens,
    off_stride,
    over_token_budget,
    truncated,
)
from cgbench.planning.policies.registry import policy
from cgbench.planning.request import PlanRequest

CEILING_TOKENS = 512
BLACKWELL_CEILING_TOKENS = 1024

TP_MODE = "the sequence-parallelism pass"


@policy("vllm-0.18", reads="max_num_batched_tokens", tp_mode=TP_MODE)
def vllm_0_18(request: PlanRequest) -> CapturePlan:
    """vLLM 0.18: a grid of tokens, rounded up to multiples of k + 1.

    The ceiling is min(2 * max_num_seqs * (k + 1), 512, max_num_batched_tokens) tokens; the grid
    1, 2, 4, then by 8 below 256, then by 16. Each size is rounded up to a multiple of k + 1, and
    dropped where that is above the grid's largest
    (``CompilationConfig.adjust_cudagraph_sizes_for_spec_decode``). max_num_seqs is not appended.
    """
    ceiling = min(_ceiling(request, CEILING_TOKENS), request.max_num_batched_tokens)
    return _plan(request, _grid(ceiling), ceiling)


@policy("vllm-0.33", reads="max_num_batched_tokens blackwell", tp_mode=TP_MODE)
def vllm_0_33(request: PlanRequest) -> CapturePlan:
    """vLLM 0.33: the same, with the decode batches' own sizes added.

    Added are n * (k + 1) tokens (pull request 50488), where k is not 0, for n on the same grid
    over requests and for n = max_num_seqs, up to the ceiling; and max_num_batched_tokens itself
    where that is the ceiling. On data-centre Blackwell the 512 is 1024 (pull request 49390).
    Without drafts max_num_seqs is still not appended (pull request 57355, which does, is later).
    """
    default = BLACKWELL_CEILING_TOKENS if request.blackwell else CEILING_TOKENS
    ceiling = min(_ceiling(request, default), request.max_num_batched_tokens)
    tokens = {*_grid(ceiling), *_uniform(request, ceiling)}
    if ceiling == request.max_num_batched_tokens:
        tokens.add(ceiling)
    return _plan(request, tokens, ceiling)


def _ceiling(request: PlanRequest, default: int) -> int:
    return min(2 * request.max_batch_size * request.query_len, default)


def _grid(most: int) -> list[int]:
    sizes = [*(1, 2, 4), *range(8, 256, 8), *range(256, most + 1, 16)]
    return [size for size in sizes if size <= most]


def _uniform(request: PlanRequest, ceiling: int) -> list[int]:
    q = request.query_len
    counts = {*_grid(request.max_batch_size), request.max_batch_size}
    return [n * q for n in counts if n * q <= ceiling] if request.spec_tokens else []


def _plan(request: PlanRequest, tokens: Iterable[int], ceiling: int) -> CapturePlan:
    tokens = _rounded(request, [size for size in tokens if size % request.tp_size == 0])
    bare = from_exact_tokens(request, tokens)
    warnings = [
        *truncated(request, ceiling),
        *over_token_budget(request),
        *off_stride(request, bare.batch_sizes, ceiling // request.query_len),
    ]
    return from_exact_tokens(request, tokens, warnings)


def _rounded(request: PlanRequest, tokens: list[int]) -> list[int]:
    """``tokens`` rounded up to whole requests, none above the largest of them."""
    multiple = _multiple(request)
    rounded = {-(-size // multiple) * multiple for size in tokens}
    kept = sorted(size for size in rounded if size <= max(tokens))
    if tokens and not kept:
        raise PlanError(
            f"{request.policy} finds no capture size that is a multiple of {multiple} up to "
            f"{max(tokens)} tokens; raise --max-num-batched-tokens or lower --spec-tokens"
        )
    return kept


def _multiple(request: PlanRequest) -> int:
    q, tp = request.query_len, request.tp_size
    multiple = max(q, tp)
    if multiple % q or multiple % tp:
        raise PlanError(
            f"{request.policy} refuses --tp {tp} with --spec-tokens {request.spec_tokens}: "
            f"with {TP_MODE} on, {tp} and {q} must divide one another; where it is off, its plan "
            "is that of cgbench plan --tp 1, and run takes it by --capture-sizes"
        )
    return multiple
