"""Capture policies: each is one small pure function from a ``PlanRequest`` to a ``CapturePlan``.

A policy named after an engine keeps that engine's faults and says so in ``warnings``; what the
engine would refuse raises ``PlanError``. To add one, write the function and decorate it.
"""

from collections.abc import Callable
from dataclasses import replace

from cgbench.errors import PlanError
from cgbench.planning.plan import Bucket, CapturePlan
from cgbench.planning.request import PlanRequest

Policy = Callable[[PlanRequest], CapturePlan]

POLICIES: dict[str, Policy] = {}

FASTDEPLOY_CANDIDATES: tuple[int, ...] = (
    1,
    2,
    4,
    *range(8, 129, 8),
    *range(144, 257, 16),
    *range(288, 1025, 32),
)
"""Batch sizes that FastDeploy 2.4 starts from, before it scales them by k + 1."""

FASTDEPLOY_MAX_TOKENS = 512


def policy(name: str) -> Callable[[Policy], Policy]:
    """Register the decorated function as the policy ``name``."""

    def register(function: Policy) -> Policy:
        POLICIES[name] = function
        return function

    return register


def plan(request: PlanRequest) -> CapturePlan:
    """Apply the request's policy.

    Raises ``PlanError`` for an unknown policy, and for whatever the policy refuses.
    """
    if request.policy not in POLICIES:
        known = ", ".join(sorted(POLICIES))
        raise PlanError(f"--policy {request.policy}: unknown; choose one of {known}")
    return POLICIES[request.policy](request)


@policy("scaled")
def scaled(request: PlanRequest) -> CapturePlan:
    """FastDeploy's candidates times k + 1, under a token cap that k + 1 always divides.

    The cap is min(512, max_batch_size * (k + 1)) tokens, rounded down to a multiple of k + 1 and
    appended, so every listed size is a whole number of requests and the largest batch that fits
    has a graph of its own. The rule is this project's mending of ``fastdeploy-2.4``.
    """
    q = request.query_len
    cap = min(FASTDEPLOY_MAX_TOKENS, request.max_batch_size * q) // q * q
    tokens = {size * q for size in FASTDEPLOY_CANDIDATES if size * q < cap} | {cap}
    return _from_tokens(request, tuple(sorted(tokens)))


@policy("fastdeploy-2.4")
def fastdeploy_2_4(request: PlanRequest) -> CapturePlan:
    """FastDeploy 2.4's list, faults included (pull requests 5624 and 5670).

    Candidates times k + 1; min(512, max_num_seqs * (k + 1)) tokens appended unscaled; larger
    ones dropped; descending. A listed size that k + 1 does not divide is captured as
    size // (k + 1) requests. With MTP that engine asserts that max_num_seqs * (k + 1) is even.
    """
    q = request.query_len
    step_tokens = request.max_batch_size * q
    if request.spec_tokens and step_tokens % 2:
        raise PlanError(
            f"fastdeploy-2.4 refuses an odd token count: --max-num-seqs {request.max_batch_size} "
            f"times {q} is {step_tokens}; make --max-num-seqs even"
        )
    cap = min(FASTDEPLOY_MAX_TOKENS, step_tokens)
    tokens = {size * q for size in FASTDEPLOY_CANDIDATES if size * q <= cap} | {cap}
    return _from_tokens(request, tuple(sorted(tokens, reverse=True)))


@policy("explicit")
def explicit(request: PlanRequest) -> CapturePlan:
    """The caller's own sizes, in requests or in tokens, each checked.

    Raises ``PlanError`` for a size that k + 1 does not divide (tokens), that is below one request
    or above max_batch_size: a graph over the KV room could never be replayed.
    """
    q = request.query_len
    if not request.capture_sizes:
        raise PlanError("--policy explicit needs --capture-sizes")
    in_tokens = request.capture_unit == "tokens"
    tokens = sorted({size if in_tokens else size * q for size in request.capture_sizes})
    for size in tokens:
        _check_explicit(request, size)
    return _from_tokens(request, tuple(tokens))


def _check_explicit(request: PlanRequest, num_tokens: int) -> None:
    q = request.query_len
    if num_tokens < 1:
        raise PlanError("--capture-sizes: every size must be at least 1")
    if num_tokens % q:
        below, above = num_tokens // q * q, (num_tokens // q + 1) * q
        raise PlanError(
            f"--capture-sizes: {num_tokens} tokens are not a multiple of {q} "
            f"(--spec-tokens {request.spec_tokens} plus 1); "
            f"use {f'{below} or {above}' if below else above}"
        )
    if num_tokens // q > request.max_batch_size:
        raise PlanError(
            f"--capture-sizes: {num_tokens // q} requests ({num_tokens} tokens) are over the KV "
            f"room, {request.max_batch_size} requests; raise --max-num-seqs or drop that size"
        )


def _from_tokens(request: PlanRequest, tokens: tuple[int, ...]) -> CapturePlan:
    """A plan for sizes stated in tokens; a size that holds no whole request has no bucket."""
    q = request.query_len
    batch_sizes = sorted({size // q for size in tokens} - {0})
    indivisible = tuple(size for size in tokens if size % q)
    unwarned = CapturePlan(
        policy=request.policy,
        spec_tokens=request.spec_tokens,
        max_batch_size=request.max_batch_size,
        buckets=tuple(Bucket(size, size * q) for size in batch_sizes),
        capture_tokens=tokens,
        indivisible=indivisible,
    )
    return replace(unwarned, warnings=_warnings(unwarned))


def _warnings(unwarned: CapturePlan) -> tuple[str, ...]:
    q = unwarned.query_len
    found = [
        f"{size} tokens are not a multiple of {q}: "
        f"the graph holds {size // q} requests ({size // q * q} tokens)"
        for size in unwarned.indivisible
    ]
    if unwarned.eager_batch_sizes:
        found.append(
            f"batch sizes {unwarned.eager_above + 1} to {unwarned.max_batch_size} "
            f"({unwarned.eager_batch_sizes} of {unwarned.max_batch_size}) have no graph: eager"
        )
    return tuple(found)
