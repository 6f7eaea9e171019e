"""Speculative greedy decoding emits plain greedy decoding's tokens, request by request."""

from pathlib import Path

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

MAX_NEW_TOKENS = 16
NUM_PROMPTS = 8
ROOM = 24 + MAX_NEW_TOKENS + 2 * 8


@pytest.fixture(scope="module", params=list(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(folder, request.param, seed=3)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[list[int]]:
    return greedy_reference(
        reference_model(checkpoint), random_prompts(NUM_PROMPTS), MAX_NEW_TOKENS
    )


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> Speculator:
    return make_speculator(load_tiny(checkpoint), max_batch_size=NUM_PROMPTS, room=ROOM)


def decode(
    spec: Speculator, state: DecodeState, prompts: list[list[int]], max_new_tokens: int
) -> Generated:
    runner = EagerRunner(spec, state)
    return decode_prompts(spec, runner, prompts, max_new_tokens, max_num_tokens=64)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("spec_tokens", [0, 1, 3, 5, 16])
def test_tokens_equal_plain_greedy(
    spec: Speculator, expected: list[list[int]], spec_tokens: int, batch_size: int
) -> None:
    prompts = random_prompts(NUM_PROMPTS)
    state = make_state(spec, spec_tokens, NUM_PROMPTS)
    got: list[list[int]] = []
    for start in range(0, NUM_PROMPTS, batch_size):
        wave = prompts[start : start + batch_size]
        got += decode(spec, state, wave, MAX_NEW_TOKENS).token_ids
    assert got == expected


def test_reference_text_is_varied(expected: list[list[int]]) -> None:
    """A model that repeats one token would make the equality above cheap."""
    assert len({token for tokens in expected for token in tokens}) > 12
