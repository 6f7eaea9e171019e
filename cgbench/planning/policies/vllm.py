"""vLLM (vllm-project/vllm, ``vllm/config/vllm.py`` and ``vllm/v1/worker/gpu/cudagraph_utils.py``).

Sizes are tokens. Decode replays a full graph only at an exact multiple of k + 1 tokens and at no
more than max_num_seqs requests; larger listed sizes serve mixed batches in pieces.

``--tp`` up to 0.31: with the sequence-parallelism pass the engine keeps sizes that tp divides, and
rounds to multiples of max(k + 1, tp), which both must divide. Without the pass tp has no rule.
``tp_size`` above 1 means that the pass is on. From 0.32 on there is no rule for tp.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

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
INTERACTIVE_TOKENS = 32

TP_MODE = "the sequence-parallelism pass"

_BEFORE_0_28 = "max_num_batched_tokens interactivity"
_SINCE_0_28 = f"{_BEFORE_0_28} blackwell"


@dataclass(frozen=True, slots=True)
class _Release:
    """What a release adds to the grid: the token budget, the decode batches' own sizes with drafts
    and without. Then whether it has a ceiling of its own on Blackwell, and a rule for tp."""

    budget_size: bool = True
    draft_sizes: bool = False
    plain_size: bool = False
    has_blackwell_ceiling: bool = True
    has_tp_rule: bool = True


_0_31 = _Release(draft_sizes=True, plain_size=True)
_0_33 = replace(_0_31, has_tp_rule=False)

_RELEASES = {
    "vllm-0.18": _Release(budget_size=False, has_blackwell_ceiling=False),
    "vllm-0.26": _Release(has_blackwell_ceiling=False),
    "vllm-0.28": _Release(),
    "vllm-0.30": _Release(draft_sizes=True),
    "vllm-0.31": _0_31,
    "vllm-0.33": _0_33,
}


@policy("vllm-0.18", reads=_BEFORE_0_28, tp_mode=TP_MODE, release="0.18.0")
def vllm_0_18(request: PlanRequest) -> CapturePlan:
    """vLLM 0.18: a grid of tokens, rounded up to multiples of k + 1.

    The ceiling is min(2 * max_num_seqs * (k + 1), 512, max_num_batched_tokens) tokens; the grid
    1, 2, 4, then by 8 below 256, then by 16. Each size is rounded up to a multiple of k + 1, and
    dropped where that is above the grid's largest
    (``CompilationConfig.adjust_cudagraph_sizes_for_spec_decode``). max_num_seqs is not appended.
    """
    return _plan(request)


@policy("vllm-0.26", reads=_BEFORE_0_28, tp_mode=TP_MODE, release="0.26.0")
def vllm_0_26(request: PlanRequest) -> CapturePlan:
    """vLLM 0.26: max_num_batched_tokens itself is added where that is the ceiling."""
    return _plan(request)


@policy("vllm-0.28", reads=_SINCE_0_28, tp_mode=TP_MODE, release="0.28.0")
def vllm_0_28(request: PlanRequest) -> CapturePlan:
    """vLLM 0.28: the list of 0.26, with a ceiling of 1024 tokens on data-centre Blackwell (pull
    request 49390)."""
    return _plan(request)


@policy("vllm-0.30", reads=_SINCE_0_28, tp_mode=TP_MODE, release="0.30.0")
def vllm_0_30(request: PlanRequest) -> CapturePlan:
    """vLLM 0.30: with drafts the decode batches' own sizes are added (pull request 50488)."""
    return _plan(request)


@policy("vllm-0.31", reads=_SINCE_0_28, tp_mode=TP_MODE, release="0.31.0")
def vllm_0_31(request: PlanRequest) -> CapturePlan:
    """vLLM 0.31: without drafts max_num_seqs itself is added too, where it fits."""
    return _plan(request)


@policy("vllm-0.33", reads=_SINCE_0_28, release="0.33.0")
def vllm_0_33(request: PlanRequest) -> CapturePlan:
    """vLLM 0.32 and 0.33: the same grid, with the decode batches' own sizes added.

    Added are n * (k + 1) tokens (pull request 50488) for n = max_num_seqs, and with drafts for n
    on the same grid over requests, where they are within the ceiling. So is
    max_num_batched_tokens itself where that is the ceiling. On data-centre Blackwell the 512 is
    1024 (pull request 49390). Tensor parallelism has no rule.
    """
    return _plan(request)


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
    return DecodeGraphs(
        verify=uniform_graphs(kept, request.query_len, request.max_batch_size),
        later_drafts=uniform_graphs(kept, 1, request.max_batch_size)
        if request.spec_tokens > 1
        else (),
    )


def uniform_graphs(listed: Collection[int], query_len: int, max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes that have a full graph where every request runs ``query_len`` tokens.

    ``CudaGraphManager._init_candidates`` of runner V2: a size of the list is rounded up to whole
    requests, and dropped where that is above the largest or holds more than max_num_seqs.
    """
    found = (size // query_len for size in _rounded(listed, query_len))
    return tuple(n for n in found if n <= max_batch_size)


def token_list(request: PlanRequest) -> list[int]:
    """The engine's sizes in tokens, ascending: a user's list by the engine's rule, or its own.

    Mixed batches have a graph in pieces at each of them. The request's policy names the release.
    Raises ``RefusedPlanError`` where a list and a ceiling disagree.
    """
    release = _RELEASES.get(request.policy, _0_33)
    listed = _listed(request, release)
    tp = request.tp_size if release.has_tp_rule else 1
    return [size for size in listed if size % tp == 0]


def grid(most: int) -> list[int]:
    """1, 2, 4, then by 8 below 256, then by 16: of tokens, and of requests."""
    sizes = [*(1, 2, 4), *range(8, 256, 8), *range(256, most + 1, 16)]
    return [size for size in sizes if size <= most]


def _ceiling(request: PlanRequest, release: _Release) -> int:
    """The largest size in tokens that the engine's own list may reach, the budget left aside."""
    if request.graph_maximum is not None:
        return request.graph_maximum
    is_high = request.blackwell and release.has_blackwell_ceiling
    default = BLACKWELL_CEILING_TOKENS if is_high else CEILING_TOKENS
    return min(2 * request.max_batch_size * _widest_query(request), default)


def _listed(request: PlanRequest, release: _Release) -> list[int]:
    if request.graph_sizes:
        return _of_the_user(request)
    budget = request.max_num_batched_tokens
    ceiling = min(_ceiling(request, release), budget)
    tokens = {*grid(ceiling)}
    if request.interactivity:
        tokens.update(range(1, min(ceiling, INTERACTIVE_TOKENS) + 1))
    if ceiling == budget and release.budget_size:
        tokens.add(budget)
    # A ceiling of the user's own turns the decode batches' sizes off.
    if request.graph_maximum is None:
        tokens.update(_uniform(request, release, ceiling))
    return sorted(tokens)


def _of_the_user(request: PlanRequest) -> list[int]:
    """A user's list: duplicates and sizes over max_num_batched_tokens dropped."""
    kept = sorted({n for n in request.graph_sizes if n <= request.max_num_batched_tokens})
    largest = kept[-1] if kept else 0
    if request.graph_maximum is not None and request.graph_maximum != largest:
        raise RefusedPlanError(
            request.policy,
            f"max_cudagraph_capture_size {request.graph_maximum} beside cudagraph_capture_sizes "
            f"that end at {largest}; give one of them",
        )
    return kept


def _uniform(request: PlanRequest, release: _Release, ceiling: int) -> list[int]:
    """The decode batches' own sizes, for each draft length up to its widest batch."""
    if not (release.draft_sizes if _widest_query(request) > 1 else release.plain_size):
        return []
    return [
        n * q for q, most in _tiers(request) for n in _counts(request, most) if n * q <= ceiling
    ]


def _tiers(request: PlanRequest) -> list[tuple[int, int]]:
    """Tokens a request and the most requests that run so many."""
    if request.schedule is None:
        return [(request.query_len, request.max_batch_size)]
    return [(k + 1, request.schedule.widest(k)) for k in request.schedule.lengths]


def _counts(request: PlanRequest, most: int) -> set[int]:
    return {*grid(most), most} if _widest_query(request) > 1 else {most}


def _widest_query(request: PlanRequest) -> int:
    """Tokens a request at the longest draft of the deployment."""
    if request.schedule is None:
        return request.query_len
    return max(request.schedule.longest, *request.schedule.lengths) + 1


def _plan(request: PlanRequest) -> CapturePlan:
    release = _RELEASES[request.policy]
    multiple = _multiple(request) if release.has_tp_rule else request.query_len
    listed = token_list(request)
    tokens = _rounded(listed, multiple)
    if listed and not tokens and not request.graph_sizes:
        raise RefusedPlanError(
            request.policy,
            f"a budget with no capture size that is a multiple of {multiple} up to "
            f"{max(listed)} tokens; raise --max-num-batched-tokens or lower --spec-tokens",
        )
    ceiling = min(_ceiling(request, release), request.max_num_batched_tokens)
    if request.graph_sizes:
        ceiling = max(listed, default=0)
    bare = from_exact_tokens(request, tokens)
    warnings = [
        *truncated(request, ceiling, "--max-cudagraph-capture-size"),
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
