"""Recurrent state: speculation on hybrids is lossless; the state is a function of the length."""

from pathlib import Path

import pytest

from cgbench.engine.runner import EagerRunner
from cgbench.models.families import QWEN
from tests.tiny import (
    HYBRID_CONFIGS,
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

MAX_NEW_TOKENS = 24
ROOM = 24 + MAX_NEW_TOKENS + 2 * 5


@pytest.fixture(scope="module", params=list(HYBRID_CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(made, request.param, family=QWEN, seed=3)


@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_hybrids_decode_plain_greedy_tokens(folder: Path, k: int) -> None:
    """Five ragged prompts, prefilled in groups, against transformers one request at a time."""
    model = load_tiny(folder)
    prompts = [[7], *random_prompts(4)]
    spec = make_speculator(model, max_batch_size=5, room=ROOM, max_spec_tokens=k)
    runner = EagerRunner(spec, make_state(spec, k, 5))
    got = decode_prompts(spec, runner, prompts, MAX_NEW_TOKENS, max_num_tokens=48)
    expected = greedy_reference(reference_model(folder), prompts, MAX_NEW_TOKENS)
    assert got.token_ids == expected
