"""Drafts, against a slow implementation with no cache, no slots and no batch.

Lossless decoding hides every mistake in the drafting path, so the drafts themselves are compared,
after every iteration and for every row.
"""

from pathlib import Path

import pytest

from cgbench.checks.reference import reference_draft_logits
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.models.heads.families import DEEPSEEK, EAGLE, ERNIE, EXAONE, HY, MIMO, STEP
from cgbench.models.heads.head import HeadForm
from tests.support.tiny import (
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)

MAX_NEW_TOKENS = 16
ROOM = 24 + MAX_NEW_TOKENS + 2 * 8


OWN = HeadForm(own_embedding=True, own_output=True)
CASES = [
    (MIMO, "mimo", None),
    (MIMO, "mistral", None),
    (MIMO, "gemma3_text", OWN),
    (DEEPSEEK, "deepseek_v3", None),
    (HY, "hy_v3", None),
    (STEP, "step3p7", OWN),
    (EXAONE, "exaone4", None),
    (EXAONE, "exaone_moe", HeadForm(dense=True)),
    (ERNIE, "ernie4_5_moe", None),
    (EAGLE, "llama", OWN),
]
"""Both forms of each hidden state, every output norm, windows, latent attention, experts, and
matrices of the head's own."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].name}-{case[1]}")
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Speculator:
    family, kind, form = request.param
    made = tmp_path_factory.mktemp("tiny")
    folder: Path = make_checkpoint(made, kind, family=family, seed=5, form=form)
    model = load_tiny(folder)
    assert model.head is not None and (model.head.output is not None) == (form is OWN)
    return make_speculator(model, max_batch_size=5, room=ROOM)


@pytest.mark.parametrize("k", [1, 4])
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
