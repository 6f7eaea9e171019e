"""Turn an engine's list of sizes into a plan, with the warnings that every engine shares."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from cgbench.planning.plan import Bucket, CapturePlan
from cgbench.planning.plan_request import PlanRequest


def from_tokens(
    request: PlanRequest, tokens: Iterable[int], warnings: Iterable[str] = ()
) -> CapturePlan:
    """Return a plan for sizes stated in tokens, in the engine's order.

    A size that k + 1 does not divide is captured with the whole requests that it holds. A size that
    holds none has no bucket.
    """
    tokens = tuple(tokens)
    q = request.query_len
    return _finished(request, tokens, {size // q for size in tokens} - {0}, warnings)


def from_exact_tokens(
    request: PlanRequest, tokens: Iterable[int], warnings: Iterable[str] = ()
) -> CapturePlan:
    """Return a plan for sizes stated in tokens, of which only some decode.

    Decode needs a whole number of requests up to max_batch_size.
    """
    tokens = tuple(tokens)
    q = request.query_len
    sizes = {size // q for size in tokens if not size % q}
    sizes = {size for size in sizes if size <= request.max_batch_size}
    return _finished(request, tokens, sizes, warnings)


def from_requests(
    request: PlanRequest, sizes: Iterable[int], warnings: Iterable[str] = (), *, pads: bool = True
) -> CapturePlan:
    """Return a plan for sizes stated in requests, in the engine's order."""
    sizes = tuple(sizes)
    tokens = tuple(size * request.query_len for size in sizes)
    return _finished(request, tokens, set(sizes), warnings, pads=pads)


def truncated(request: PlanRequest, ceiling_tokens: int, flag: str = "") -> Iterator[str]:
    """Yield a warning if the list stops below the tokens of a full batch.

    ``flag`` raises its end.
    """
    need = request.max_batch_size * request.query_len
    if need > ceiling_tokens:
        mend = f". {flag} {need} raises it" if flag else ""
        yield (
            f"truncated: a full batch needs {need} tokens, the list stops at {ceiling_tokens}{mend}"
        )


def over_token_budget(request: PlanRequest) -> Iterator[str]:
    """Yield a warning if a full batch has more tokens than the engine's scheduler runs at once."""
    budget = request.max_num_batched_tokens
    need = request.max_batch_size * request.query_len
    if need > budget:
        yield (
            f"over the token budget: a full batch needs {need} tokens, --max-num-batched-tokens "
            f"{budget} lets {budget // request.query_len} requests run"
        )


def off_stride(request: PlanRequest, sizes: Iterable[int], ceiling: int) -> Iterator[str]:
    """Yield a warning if max_num_seqs lies between two sizes of a list that does not append it.

    ``sizes`` are the requests that have a graph. ``ceiling`` is the most that the list reaches for.
    """
    most, top = request.max_batch_size, max(sizes, default=0)
    if top < most <= ceiling:
        yield (
            f"off-stride: --max-num-seqs {most} ({most * request.query_len} tokens) falls between "
            f"two listed sizes, the largest decode graph holds {top}. List it yourself"
        )


def _finished(
    request: PlanRequest,
    tokens: tuple[int, ...],
    batch_sizes: set[int],
    warnings: Iterable[str],
    *,
    pads: bool = True,
) -> CapturePlan:
    q = request.query_len
    bare = CapturePlan(
        policy=request.policy,
        spec_tokens=request.spec_tokens,
        max_batch_size=request.max_batch_size,
        buckets=tuple(Bucket(size, size * q) for size in sorted(batch_sizes)),
        capture_tokens=tokens,
        indivisible=tuple(size for size in tokens if size % q),
        pads=pads,
    )
    return replace(bare, warnings=(*_indivisible(bare), *warnings, *_eager(bare)))


def _indivisible(bare: CapturePlan) -> Iterator[str]:
    q = bare.query_len
    for size in bare.indivisible:
        yield (
            f"{size} tokens are not a multiple of {q}: "
            f"the graph holds {size // q} requests ({size // q * q} tokens)"
        )


def _eager(bare: CapturePlan) -> Iterator[str]:
    for span in bare.eager_spans:
        count, of = span.last - span.first + 1, bare.max_batch_size
        if count == 1:
            yield f"batch size {span.first} (1 of {of}) has no graph: eager"
        else:
            yield (
                f"batch sizes {span.first} to {span.last} ({count} of {of}) have no graph: eager"
            )
