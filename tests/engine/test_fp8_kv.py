"""Tokens over FP8 keys and values are those of transformers over a cache rounded by hand."""

from pathlib import Path

import pytest

from cgbench.engine.runner import EagerRunner
from cgbench.models.heads.families import DEEPSEEK, MIMO, QWEN, HeadFamily
from cgbench.models.loader import LoadedModel
from cgbench.request.choices import KvDtype
from tests.support.fp8_kv import decoded_by_hand
from tests.support.tiny import (
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
NUM_PROMPTS = 4
ROOM = 24 + MAX_NEW_TOKENS + 2 * 3

# A dense model, one with a window, a mixture, sinks, a model that is mostly recurrent.
KINDS: dict[str, tuple[HeadFamily, int]] = {
    "mimo": (MIMO, 2),
    "mistral": (MIMO, 1),
    "glm4_moe": (DEEPSEEK, 1),
    "gpt_oss": (MIMO, 1),
    "qwen3_5": (QWEN, 1),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, num_modules = KINDS[request.param]
    made = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(made, request.param, seed=3, family=family, num_modules=num_modules)


def decoded(model: LoadedModel, k: int) -> list[list[int]]:
    spec = make_speculator(model, max_batch_size=NUM_PROMPTS, room=ROOM)
    runner = EagerRunner(spec, make_state(spec, k, NUM_PROMPTS))
    prompts = random_prompts(NUM_PROMPTS)
    return decode_prompts(spec, runner, prompts, MAX_NEW_TOKENS, max_num_tokens=64).token_ids


def test_tokens_are_those_of_a_cache_rounded_by_hand(folder: Path) -> None:
    """Ragged batches. No other text follows from how tokens are divided into forwards."""
    reference, prompts = reference_model(folder), random_prompts(NUM_PROMPTS)
    expected = decoded_by_hand(reference, prompts, MAX_NEW_TOKENS)
    # Another text than without rounding, or the equality would say nothing.
    assert expected != greedy_reference(reference, prompts, MAX_NEW_TOKENS)
    model = load_tiny(folder, kv_dtype=KvDtype.FP8)
    for k in (0, 3):
        assert decoded(model, k) == expected
