"""Decoding with heads that read auxiliary states: the prompts, and a few iterations of them."""

from pathlib import Path
from typing import Any

import torch

from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding, prefill
from tests.support.tiny import load_tiny, make_speculator, make_state, random_prompts

MAX_NEW_TOKENS = 24
ROOM = 24 + MAX_NEW_TOKENS + 2 * 5


def prompts() -> list[list[int]]:
    return [[5], *random_prompts(4, seed=4)]


def speculator(target: Path, head: Path, **changes: Any) -> Speculator:
    return make_speculator(load_tiny(target, head=head), max_batch_size=5, room=ROOM, **changes)


def trajectory(
    spec: Speculator, expected: list[list[int]], k: int
) -> list[tuple[list[list[int]], list[list[int]], list[int]]]:
    """The sequences and drafts before each of a few iterations, and the drafts accepted before
    them. Row i's iteration accepts (i + its number) % (k + 1) drafts at least."""
    count = len(prompts())
    state = make_state(spec, k, 5)
    prefilled = prefill(spec, prompts(), max_num_tokens=50)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    rows, found = state.rows(count), []
    sequences = [[*p, t] for p, t in zip(prompts(), prefilled.last.tolist(), strict=True)]
    accepted: list[int] = []
    for number in range(4):
        found.append(([[*each] for each in sequences], rows.drafts.tolist(), accepted))
        for row, (prompt, tokens) in enumerate(zip(prompts(), expected, strict=True)):
            following = tokens[len(sequences[row]) - len(prompt) :]
            kept = following[: (row + number) % (k + 1)]
            rows.drafts[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        iteration(spec, rows)
        accepted = rows.num_accepted.tolist()
        for i, emitted in enumerate(rows.num_emitted.tolist()):
            sequences[i] += rows.out[i, :emitted].tolist()
        if not rows.active.all():
            break
    return found
