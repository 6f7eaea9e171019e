"""Drafts, against a slow implementation with no cache, no slots and no batch.

Lossless decoding hides every mistake in the drafting path, so the drafts themselves are compared,
after every iteration and for every row.
"""

from pathlib import Path

import pytest

from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.measure.audit.reference import reference_draft_logits
from cgbench.models.families import DEEPSEEK, EAGLE, ERNIE, MIMO
from tests.tiny import load_tiny, make_checkpoint, make_speculator, make_state, random_prompts

MAX_NEW_TOKENS = 16
ROOM = 24 + MAX_NEW_TOKENS + 2 * 8


CASES = [
    (MIMO, "mimo"),
    (MIMO, "mistral"),
    (MIMO, "gemma3_text"),
    (DEEPSEEK, "deepseek_v3"),
    (ERNIE, "ernie4_5_moe"),
    (EAGLE, "llama"),
]
"""Both forms of each hidden state, every output norm, windows, latent attention and experts."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].name}-{case[1]}")
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Speculator:
    family, kind = request.param
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("tiny"), kind, family=family, seed=5)
    return make_speculator(load_tiny(folder), max_batch_size=5, room=ROOM)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_drafts_equal_the_reference(spec: Speculator, k: int) -> None:
    prompts = random_prompts(5, seed=k)
    prefilled = prefill(spec, prompts, max_num_tokens=50)
    state = make_state(spec, k, 5)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    sequences = [[*p, t] for p, t in zip(prompts, prefilled.last.tolist(), strict=True)]
    assert spec.head is not None
    rows = state.rows(5)
    for _ in range(4):
        for sequence, drafts in zip(sequences, rows.drafts.tolist(), strict=True):
            logits = reference_draft_logits(spec.target, spec.head, sequence, k)
            assert drafts == logits.argmax(-1).tolist()
        iteration(spec, rows)
        for i, emitted in enumerate(rows.num_emitted.tolist()):
            sequences[i] += rows.out[i, :emitted].tolist()
