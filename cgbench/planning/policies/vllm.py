"""Plan as vLLM does (vllm-project/vllm).

The rules are in ``vllm/config/vllm.py`` and ``vllm/v1/worker/gpu/cudagraph_utils.py``. Sizes are
tokens. Decode replays a full graph only at an exact multiple of k + 1 tokens and at no more than
max_num_seqs requests. Larger listed sizes serve mixed batches in pieces.

``--tp`` has a rule up to 0.31, with the sequence-parallelism pass alone. The engine then keeps
sizes that tp divides. It rounds to multiples of max(k + 1, tp), which both must divide. ``tp_size``
above 1 means that the pass is on. From 0.32 on there is no rule for tp.
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
    """A ``_Release`` holds what one release of vLLM adds to the grid.

    The first three flags stand for the token budget, and for the decode batches' own sizes with
    drafts and without. The others are a ceiling for Blackwell and a rule for tp.
    """

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
    """Plan vLLM 0.18's list: a grid of tokens, rounded up to multiples of k + 1.

    The ceiling is min(2 * max_num_seqs * (k + 1), 512, max_num_batched_tokens) tokens. The grid is
    1, 2, 4, then by 8 below 256, then by 16. Each size is rounded up to a multiple of k + 1, and
    dropped if that is above the grid's largest
    (``CompilationConfig.adjust_cudagraph_sizes_for_spec_decode``). max_num_seqs is not appended.
    """
    return _plan(request)


@policy("vllm-0.26", reads=_BEFORE_0_28, tp_mode=TP_MODE, release="0.26.0")
def vllm_0_26(request: PlanRequest) -> CapturePlan:
    """Plan vLLM 0.26's list: that of 0.18, with max_num_batched_tokens if it is the ceiling."""
    return _plan(request)


@policy("vllm-0.28", reads=_SINCE_0_28, tp_mode=TP_MODE, release="0.28.0")
def vllm_0_28(request: PlanRequest) -> CapturePlan:
    """Plan vLLM 0.28's list: that of 0.26, with a ceiling of 1024 tokens on data-centre Blackwell.

    The source is pull request 49390.
    """
    return _plan(request)


@policy("vllm-0.30", reads=_SINCE_0_28, tp_mode=TP_MODE, release="0.30.0")
def vllm_0_30(request: PlanRequest) -> CapturePlan:
    """Plan vLLM 0.30's list: that of 0.28, with the decode batches' own sizes if there are drafts.

    The source is pull request 50488.
    """
    return _plan(request)


@policy("vllm-0.31", reads=_SINCE_0_28, tp_mode=TP_MODE, release="0.31.0")
def vllm_0_31(request: PlanRequest) -> CapturePlan:
    """Plan vLLM 0.31's list: that of 0.30, with max_num_seqs itself without drafts, if it fits."""
    return _plan(request)


@policy("vllm-0.33", reads=_SINCE_0_28, release="0.33.0")
def vllm_0_33(request: PlanRequest) -> CapturePlan:
    """Plan the list of vLLM 0.32 and 0.33: the same grid, with the decode batches' own sizes added.

    These are n * (k + 1) tokens (pull request 50488) for n = max_num_seqs. With drafts they are
    added for n on the same grid over requests too. All must be within the ceiling.
    max_num_batched_tokens itself is added if it is the ceiling. On data-centre Blackwell the 512 is
    1024 (pull request 49390). Tensor parallelism has no rule.
    """
    return _plan(request)


@dataclass(frozen=True, slots=True)
class DecodeGraphs:
    """A ``DecodeGraphs`` holds the batch sizes that have a full graph, in requests.

    ``verify`` serves verify and draft 1, and ``later_drafts`` serves drafts 2..k.
    """

    verify: tuple[int, ...]
    later_drafts: tuple[int, ...]


def decode_graphs(request: PlanRequest, listed: Iterable[int]) -> DecodeGraphs:
    """Return what vLLM 0.33 captures from a list of sizes in tokens, its own or a user's.

    Sizes over max_num_batched_tokens are dropped. Verify rounds the others up to multiples of k +
    1. Drafts 2..k run one token a request, so they look for n tokens in the same list. Either way a
    size above the list's largest, or above max_num_seqs requests, is dropped.
    """
    kept = {size for size in listed if size <= request.max_num_batched_tokens}
    return DecodeGraphs(
        verify=uniform_graphs(kept, request.query_len, request.max_batch_size),
        later_drafts=uniform_graphs(kept, 1, request.max_batch_size)
        if request.spec_tokens > 1
        else (),
    )


def uniform_graphs(listed: Collection[int], query_len: int, max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes that have a full graph if every request runs ``query_len`` tokens.

    A size of the list is rounded up to whole requests. It is dropped if that is above the largest
    or holds more than max_num_seqs. The source is ``CudaGraphManager._init_candidates`` of runner
    V2.
    """
    found = (size // query_len for size in _rounded(listed, query_len))
    return tuple(n for n in found if n <= max_batch_size)


def token_list(request: PlanRequest) -> list[int]:
    """Return the engine's sizes in tokens, ascending: a user's list by its rule, or its own.

    Mixed batches have a graph in pieces at each of them. The request's policy names the release.
    Raise ``RefusedPlanError`` if a list and a ceiling disagree.
    """
    release = _RELEASES.get(request.policy, _0_33)
    listed = _listed(request, release)
    tp = request.tp_size if release.has_tp_rule else 1
    return [size for size in listed if size % tp == 0]


def grid(most: int) -> list[int]:
    """Return 1, 2, 4, then by 8 below 256, then by 16 up to ``most``.

    It serves tokens and requests.
    """
    sizes = [*(1, 2, 4), *range(8, 256, 8), *range(256, most + 1, 16)]
    return [size for size in sizes if size <= most]


def _ceiling(request: PlanRequest, release: _Release) -> int:
    """Return the largest size in tokens that the engine's own list may reach, without the
    budget.
    """
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
    """Return a user's list without duplicates and without sizes over max_num_batched_tokens."""
    kept = sorted({n for n in request.graph_sizes if n <= request.max_num_batched_tokens})
    largest = kept[-1] if kept else 0
    if request.graph_maximum is not None and request.graph_maximum != largest:
        raise RefusedPlanError(
            request.policy,
            f"max_cudagraph_capture_size {request.graph_maximum} beside cudagraph_capture_sizes "
            f"that end at {largest}. Give one of them",
        )
    return kept


def _uniform(request: PlanRequest, release: _Release, ceiling: int) -> list[int]:
    """Return the decode batches' own sizes, for each draft length up to its widest batch."""
    if not (release.draft_sizes if _widest_query(request) > 1 else release.plain_size):
        return []
    return [
        n * q for q, most in _tiers(request) for n in _counts(request, most) if n * q <= ceiling
    ]


def _tiers(request: PlanRequest) -> list[tuple[int, int]]:
    """Return pairs: tokens a request, and the most requests that run so many."""
    if request.schedule is None:
        return [(request.query_len, request.max_batch_size)]
    return [(k + 1, request.schedule.widest(k)) for k in request.schedule.lengths]


def _counts(request: PlanRequest, most: int) -> set[int]:
    return {*grid(most), most} if _widest_query(request) > 1 else {most}


def _widest_query(request: PlanRequest) -> int:
    """Return the tokens a request at the longest draft of the deployment."""
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
            f"{max(listed)} tokens. Raise --max-num-batched-tokens or lower --spec-tokens",
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
    """Return ``tokens`` rounded up to multiples, none above the largest of them."""
    rounded = {-(-size // multiple) * multiple for size in tokens}
    return sorted(size for size in rounded if size <= max(tokens))


def _multiple(request: PlanRequest) -> int:
    q, tp = request.query_len, request.tp_size
    multiple = max(q, tp)
    if multiple % q or multiple % tp:
        raise RefusedPlanError(
            request.policy,
            f"--tp {tp} with --spec-tokens {request.spec_tokens}: "
            f"with {TP_MODE} on, {tp} and {q} must divide one another. Where it is off, its plan "
            "is that of cgbench plan --tp 1, and run takes it by --capture-sizes",
        )
    return multiple
