"""Speculative greedy decoding emits plain greedy decoding's tokens, request by request."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cgbench.engine.generation import Generated
from cgbench.engine.iteration import Speculator
from cgbench.engine.runner import EagerRunner
from cgbench.engine.state import DecodeState
from tests.support.tiny import (
    CONFIGS,
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

MAX_NEW_TOKENS = 14
NUM_PROMPTS = 8
ROOM = 24 + MAX_NEW_TOKENS + 2 * 8


SPEC_TOKENS = (0, 1, 3, 5, 16)
BATCH_SIZES = (1, 3, 8)
CASES = [
    (kind, k, BATCH_SIZES[(place + number) % len(BATCH_SIZES)])
    for place, kind in enumerate(CONFIGS)
    for number, k in enumerate(SPEC_TOKENS)
]
"""Every kind at every k, every kind at every batch size, and every k at every batch size."""


@cache
def made(kind: str) -> tuple[Speculator, list[list[int]]]:
    """A model of ``kind``, and what transformers decodes with it."""
    with TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder), kind, seed=3)
        reference = reference_model(checkpoint)
        expected = greedy_reference(reference, random_prompts(NUM_PROMPTS), MAX_NEW_TOKENS)
        model = load_tiny(checkpoint)
    return make_speculator(model, max_batch_size=NUM_PROMPTS, room=ROOM), expected


def decode(
    spec: Speculator, state: DecodeState, prompts: list[list[int]], max_new_tokens: int
) -> Generated:
    runner = EagerRunner(spec, state)
    return decode_prompts(spec, runner, prompts, max_new_tokens, max_num_tokens=64)


@pytest.mark.parametrize(("kind", "spec_tokens", "batch_size"), CASES)
def test_tokens_equal_plain_greedy(kind: str, spec_tokens: int, batch_size: int) -> None:
    """In waves over one state: what one wave leaves behind is the next one's start."""
    spec, expected = made(kind)
    # Two waves, or all of the prompts.
    prompts = random_prompts(NUM_PROMPTS)[: 2 * batch_size]
    state = make_state(spec, spec_tokens, NUM_PROMPTS)
    got: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        wave = prompts[start : start + batch_size]
        got += decode(spec, state, wave, MAX_NEW_TOKENS).token_ids
    assert got == expected[: len(prompts)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_reference_text_is_varied(kind: str) -> None:
    """A model that repeats one token would make the equality above cheap."""
    assert len({token for tokens in made(kind)[1] for token in tokens}) > 12
