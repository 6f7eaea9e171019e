"""Find which rows an iteration computed, by marks that every computed row overwrites."""

import torch

from cgbench.engine.iteration import Speculator
from cgbench.engine.runner import Runner
from cgbench.engine.state import DecodeState
from cgbench.kernels.row_updates import ACTIVE, NUM_EMITTED

MARK = -7
"""A value that no count and no hidden state takes."""


def mark_rows(spec: Speculator, state: DecodeState) -> None:
    """Mark every row. An iteration reads none of these buffers before it has written them."""
    for buffer in _marked(spec, state):
        buffer.fill_(MARK)


def computed_rows(spec: Speculator, state: DecodeState) -> torch.Tensor:
    """Return ``[buffers, max_batch]``: for each marked buffer, the rows whose marks are gone."""
    return torch.stack([(buffer != MARK).flatten(1).any(1) for buffer in _marked(spec, state)])


def bucket_fault(spec: Speculator, runner: Runner, batch_size: int, bucket: int) -> str | None:
    """Step once over ``batch_size`` requests, which take a ``bucket``, and return what is wrong
    with the rows computed. Return None if nothing is.

    They must be the bucket's, no fewer and no more, in every part of the iteration.
    """
    mark_rows(spec, runner.state)
    runner.step(batch_size)
    return rows_fault(spec, runner.state, batch_size, bucket)


def rows_fault(spec: Speculator, state: DecodeState, batch_size: int, bucket: int) -> str | None:
    """Return what is wrong with the rows that a step computed, or None. Call ``mark_rows`` before
    the step. ``bucket_fault`` has the rule.
    """
    computed = computed_rows(spec, state).cpu()
    planned = torch.arange(computed.shape[1]) < bucket
    wrong = (computed != planned).any(0)
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    happened = "was not computed" if row < bucket else "was computed too"
    return f"{batch_size} requests take the bucket of {bucket}, but row {row} {happened}"


def _marked(spec: Speculator, state: DecodeState) -> list[torch.Tensor]:
    """Return what the parts of an iteration write. Verify writes the hidden states if there is a
    head to read them. The draft steps write the chain if a step follows, which it never does in a
    parallel drafter. Commit writes the counts.

    Tokens and num_accepted are left alone: a later part takes them for indices.
    """
    full, k = state.full, state.spec_tokens
    counts = [full.result[:, column, None] for column in (NUM_EMITTED, ACTIVE)]
    has_chain = k > 1 and not spec.is_parallel
    return [*counts, *([full.hidden] if k else []), *([full.chain] if has_chain else [])]
