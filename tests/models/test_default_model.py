"""The model that ships with the package: its layout, its size, and what its head is worth."""

import pytest
import torch

from cgbench.engine.acceptance_counts import before_repeat
from cgbench.engine.generation import generate
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.models.heads.families import MIMO
from cgbench.models.heads.head_wiring import wiring_of
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.request.model_ref import DEFAULT_MODEL_DIR
from cgbench.workload.prompt_files import read_prompts
from cgbench.workload.prompts import DEFAULT_PROMPTS
from tests.support.tiny import greedy_reference, make_speculator, make_state, reference_model

K = 3
NEW_TOKENS = 40
MAX_BYTES = 14_000_000


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(Loading("default", None, True, torch.device("cpu"), torch.float32))


@pytest.fixture(scope="module")
def prompts(model: LoadedModel) -> list[list[int]]:
    assert model.tokenizer is not None
    return [model.tokenizer(text)["input_ids"] for text in read_prompts(DEFAULT_PROMPTS)]


def test_it_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in DEFAULT_MODEL_DIR.iterdir()) <= MAX_BYTES


def test_it_is_a_public_layout(model: LoadedModel) -> None:
    assert model.head is not None and model.head.family.name == "mimo"
    # What it was trained with, and states in its config.json: engines run MiMo-7B after the norms.
    trained = {"hidden_in": "pre", "chain": "pre", "first_embed": "kept"}
    assert wiring_of(model.head.family) == wiring_of(MIMO) | trained
    assert 3e6 <= sum(p.numel() for p in model.target.model.parameters()) <= 6e6


@pytest.mark.parametrize("text", ["def f(x):\n\treturn 'é ☃ 漢'\n\n  ", "\x00\x7f\r\n" + " " * 30])
def test_its_tokenizer_loses_nothing(model: LoadedModel, text: str) -> None:
    assert model.tokenizer is not None
    assert model.tokenizer.decode(model.tokenizer(text)["input_ids"]) == text


def test_its_prompts_are_of_unequal_length(prompts: list[list[int]]) -> None:
    lengths = sorted(map(len, prompts))
    assert len(lengths) == 16 and lengths[-1] > 2 * lengths[0]


def test_its_head_drafts_three_tokens(model: LoadedModel, prompts: list[list[int]]) -> None:
    """Mean acceptance length at least 2.2 before any loop, and plain greedy decoding's tokens."""
    prompts = prompts[:8]
    room = max(map(len, prompts)) + NEW_TOKENS + 2 * K
    spec = make_speculator(model, max_batch_size=len(prompts), room=room)
    state = make_state(spec, K, len(prompts), model.eos_token_ids)
    prefilled = prefill(spec, prompts, max_num_tokens=4096)
    begin_decoding(spec, state, prefilled, tokens_left=NEW_TOKENS - 1)
    got = generate(EagerRunner(spec, state), prefilled.last.tolist())
    pairs = zip(got.token_ids, got.accepted, strict=True)
    counted = [count for pair in pairs for count in before_repeat(*pair)]
    assert 1 + sum(counted) / len(counted) >= 2.2
    plain = greedy_reference(
        reference_model(DEFAULT_MODEL_DIR), prompts[:2], NEW_TOKENS, model.eos_token_ids[0]
    )
    assert got.token_ids[:2] == plain
