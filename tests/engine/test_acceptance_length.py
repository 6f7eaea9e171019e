"""Checkpoints whose acceptance is known: a bigram table, and a head that computes the same.

Token t is followed by ``SUCCESSOR[t]``, always. The blocks add nothing, so the target's hidden
state is the token's one-hot embedding and lm_head is the table; the head projects the next
token's embedding alone.
"""

from pathlib import Path

import pytest

from cgbench.engine.generation import Generated, generate
from cgbench.engine.iteration import Speculator
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from tests.support.bigram import SUCCESSOR, VOCAB, WRONG_AFTER, make_bigram
from tests.support.tiny import (
    load_tiny,
    make_speculator,
    make_state,
    random_prompts,
)

MAX_NEW_TOKENS = 40
ROOM = 24 + MAX_NEW_TOKENS + 2 * 8


def expected_tokens(prompt: list[int]) -> list[int]:
    tokens = [SUCCESSOR[prompt[-1]]]
    while len(tokens) < MAX_NEW_TOKENS:
        tokens.append(SUCCESSOR[tokens[-1]])
    return tokens


def decode(spec: Speculator, k: int, prompts: list[list[int]]) -> Generated:
    state = make_state(spec, k, len(prompts))
    prefilled = prefill(spec, prompts, max_num_tokens=64)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    return generate(EagerRunner(spec, state), prefilled.last.tolist())


def make_spec(folder: Path, wrong_after: set[int]) -> Speculator:
    model = load_tiny(make_bigram(folder, wrong_after))
    return make_speculator(model, max_batch_size=5, room=ROOM)


@pytest.mark.parametrize("k", range(1, 9))
def test_a_head_that_always_agrees_has_every_draft_kept(tmp_path: Path, k: int) -> None:
    spec = make_spec(tmp_path, wrong_after=set())
    prompts = random_prompts(5, vocab=VOCAB)
    got = decode(spec, k, prompts)
    assert got.token_ids == [expected_tokens(prompt) for prompt in prompts]
    assert got.accepted == [[k] * -(-(MAX_NEW_TOKENS - 1) // (k + 1))] * 5


@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_head_that_errs_keeps_the_tokens_and_loses_length(tmp_path: Path, k: int) -> None:
    spec = make_spec(tmp_path, WRONG_AFTER)
    prompts = random_prompts(5, vocab=VOCAB)
    got = decode(spec, k, prompts)
    assert got.token_ids == [expected_tokens(prompt) for prompt in prompts]
    accepted = [count for counts in got.accepted for count in counts]
    assert 0 < sum(accepted) / len(accepted) < k
    assert {0, k} <= set(accepted)
