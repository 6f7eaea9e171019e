"""Decoding with heads that read auxiliary states: the prompts, and a few iterations of them."""

from pathlib import Path
from typing import Any, Protocol

import torch

from cgbench.checks.reference import reference_draft_logits
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from tests.support.tiny import (
    decode_prompts,
    load_tiny,
    make_speculator,
    make_state,
    random_prompts,
)

MAX_NEW_TOKENS = 24
FEW_TOKENS = 12
"""Of whole decodings. The others are for iterations that accept every draft."""
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


class Drafts(Protocol):
    """A plain implementation of a head."""

    def drafts(self, tokens: list[int], k: int) -> list[int]: ...


def check_tokens(spec: Speculator, expected: list[list[int]]) -> None:
    """Each k decodes what ``expected`` has for every prompt, several prompts together and one."""
    for k, batch in ((1, prompts()), (3, prompts()[2:3]), (5, prompts())):
        runner = EagerRunner(spec, make_state(spec, k, 5))
        got = decode_prompts(spec, runner, batch, FEW_TOKENS, max_num_tokens=64)
        assert got.token_ids == [expected[prompts().index(each)][:FEW_TOKENS] for each in batch]


def check_drafts(spec: Speculator, plain: Drafts, expected: list[list[int]], k: int) -> None:
    """Drafts are those of ``plain`` after iterations that accept from none to all, of a padded
    bucket and of ragged rows."""
    seen = set()
    for sequences, made, accepted in trajectory(spec, expected, k):
        seen |= set(accepted)
        for sequence, row in zip(sequences, made, strict=True):
            assert row == plain.drafts(sequence, k)
            assert spec.head is not None
            logits = reference_draft_logits(spec.target, spec.head, sequence, k)
            assert row == logits.argmax(-1).tolist()
    assert {0, k} <= seen


def check_padding(spec: Speculator) -> None:
    """Three requests in a bucket of five draft what they draft alone."""
    made = []
    for bucket in (3, 5):
        prefilled = prefill(spec, prompts()[1:4], max_num_tokens=50)
        state = make_state(spec, 3, 5)
        state.full.hidden.fill_(float("nan"))
        begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
        for _ in range(3):
            iteration(spec, state.rows(bucket))
        made.append(state.rows(3).drafts.tolist())
    assert made[0] == made[1]
