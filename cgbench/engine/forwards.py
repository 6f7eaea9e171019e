"""Compare the forwards that a graph holds with those that its bucket should have."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cgbench.engine.iteration import Speculator
from cgbench.errors import CaptureError
from cgbench.planning import Bucket
from cgbench.words import Phase

Forwards = list[tuple[str, int]]
"""These are the forwards that a graph holds, in order: target or head, and its tokens."""


def check_forwards(seen: Forwards, planned: Forwards) -> None:
    """Check that a graph holds the planned forwards. Raise ``CaptureError`` if it holds others."""
    if seen != planned:
        raise CaptureError(f"a captured graph holds the forwards {seen}, the plan's are {planned}")


def planned_forwards(
    phase: Phase,
    bucket: Bucket,
    spec_tokens: int,
    num_modules: int = 1,
    *,
    is_parallel: bool = False,
) -> Forwards:
    """Return the forwards that the graph of ``phase`` should hold for ``bucket``.

    Drafts 2..k work on one token a request, never on the k + 1 that were verified. The first step
    of a module past the head's first works on k + step rows. A parallel drafter's only forward
    works on k + 1 rows.
    """
    verify = [("target", bucket.num_tokens)]
    first = [("head", bucket.num_tokens)] if spec_tokens else []
    steps = range(2, 1 if is_parallel else spec_tokens + 1)
    lengths = (spec_tokens + step if step <= num_modules else 1 for step in steps)
    rest = [("head", bucket.batch_size * length) for length in lengths]
    return {
        Phase.VERIFY: verify,
        Phase.DRAFT_FIRST: first,
        Phase.DRAFT_REST: rest,
        Phase.ITERATION: [*verify, *first, *rest],
    }[phase]


@contextmanager
def watched_forwards(spec: Speculator) -> Iterator[Forwards]:
    """Collect the forwards that run inside the context, to compare a graph with its bucket."""
    seen: Forwards = []

    def target(_: object, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(("target", kwargs["input_ids"].numel()))

    def head(_: object, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(("head", args[0].shape[:2].numel()))

    handles = [spec.target.backbone.register_forward_pre_hook(target, with_kwargs=True)]
    if spec.head is not None:
        handles += [each.register_forward_pre_hook(head) for each in spec.head.mtp_modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
