"""vLLM (vllm-project/vllm, ``vllm/config/vllm.py`` and ``vllm/config/compilation.py``).

Sizes are tokens. Decode replays a full graph only at an exact multiple of k + 1 tokens and at no
more than max_num_seqs requests; larger listed sizes serve mixed batches in pieces.

``--tp`` in 0.18: with the sequence-parallelism pass the engine keeps sizes that tp divides, and
rounds to multiples of max(k + 1, tp), which both must divide. Without the pass tp has no rule.
``tp_size`` above 1 means that the pass is on. 0.33 has no rule for tp.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cgbench.errors import RefusedPlanError
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import (
    from_exact_tokens,
    off_stride,
    over_token_budget,
    truncated,
)
from cgbench.planning.policies.registry import policy

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
    tokens = [size for size in _grid(ceiling) if size % request.tp_size == 0]
    return _plan(request, tokens, ceiling, _multiple(request))


@policy("vllm-0.33", reads="max_num_batched_tokens blackwell")
def vllm_0_33(request: PlanRequest) -> CapturePlan:
    """vLLM 0.33: the same grid, with the decode batches' own sizes added.

    Added are n * (k + 1) tokens (pull request 50488) for n = max_num_seqs, and with drafts for n
    on the same grid over requests, where they are within the ceiling. So is
    max_num_batched_tokens itself where that is the ceiling. On data-centre Blackwell the 512 is
    1024 (pull request 49390). Tensor parallelism has no rule.
    """
    default = BLACKWELL_CEILING_TOKENS if request.blackwell else CEILING_TOKENS
    ceiling = min(_ceiling(request, default), request.max_num_batched_tokens)
    tokens = {*_grid(ceiling), *_uniform(request, ceiling)}
    if ceiling == request.max_num_batched_tokens:
        tokens.add(ceiling)
    return _plan(request, tokens, ceiling, request.query_len)


@dataclass(frozen=True, slots=True)
class DecodeGraphs:
    """The batch sizes that have a full graph: of verify and draft 1, and of drafts 2..k."""

    verify: tuple[int, ...]
    later_drafts: tuple[int, ...]


def decode_graphs(request: PlanRequest, listed: Iterable[int]) -> DecodeGraphs:
    """What vLLM 0.33 captures from a list of sizes in tokens, its own or a user's.

    Sizes over max_num_batched_tokens are dropped. Verify rounds the others up to multiples of
    k + 1. Drafts 2..k run one token a request, so they look for n tokens in the same list. Either
    way a size above the list's largest, or above max_num_seqs requests, is dropped.
    """
    kept = {size for size in listed if size <= request.max_num_batched_tokens}
    verify = _rounded(kept, request.query_len)
    most = request.max_batch_size
    return DecodeGraphs(
        verify=tuple(n for size in verify if (n := size // request.query_len) <= most),
        later_drafts=tuple(sorted(n for n in kept if n <= most)) if request.spec_tokens > 1 else (),
    )


def _ceiling(request: PlanRequest, default: int) -> int:
    return min(2 * request.max_batch_size * request.query_len, default)


def _grid(most: int) -> list[int]:
    sizes = [*(1, 2, 4), *range(8, 256, 8), *range(256, most + 1, 16)]
    return [size for size in sizes if size <= most]


def _uniform(request: PlanRequest, ceiling: int) -> list[int]:
    q, most = request.query_len, request.max_batch_size
    counts = {*_grid(most), most} if request.spec_tokens else {most}
    return [n * q for n in counts if n * q <= ceiling]


def _plan(
    request: PlanRequest, listed: Collection[int], ceiling: int, multiple: int
) -> CapturePlan:
    tokens = _rounded(listed, multiple)
    if listed and not tokens:
        raise RefusedPlanError(
            request.policy,
            f"a budget with no capture size that is a multiple of {multiple} up to "
            f"{max(listed)} tokens; raise --max-num-batched-tokens or lower --spec-tokens",
        )
    bare = from_exact_tokens(request, tokens)
    warnings = [
        *truncated(request, ceiling),
        *over_token_budget(request),
        *off_stride(request, bare.batch_sizes, ceiling // request.query_len),
    ]
    return from_exact_tokens(request, tokens, warnings)


def _rounded(tokens: Collection[int], multiple: int) -> list[int]:
    """``tokens`` rounded up to multiples, none above the largest of them."""
    rounded = {-(-size // multiple) * multiple for size in tokens}
    return sorted(size for size in rounded if size <= max(tokens))


def _multiple(request: PlanRequest) -> int:
    q, tp = request.query_len, request.tp_size
    multiple = max(q, tp)
    if multiple % q or multiple % tp:
        raise RefusedPlanError(
            request.policy,
            f"--tp {tp} with --spec-tokens {request.spec_tokens}: "
            f"with {TP_MODE} on, {tp} and {q} must divide one another; where it is off, its plan "
            "is that of cgbench plan --tp 1, and run takes it by --capture-sizes",
        )
    return multiple
