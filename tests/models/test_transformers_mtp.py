"""Drafts against transformers' own ``generate(use_mtp=True)``, written independently.

It runs as many drafts as the head has modules, chained after the norm, by the target's lm_head.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpModel

from cgbench.engine.iteration import iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.models.heads.families import DEEPSEEK
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading
from cgbench.request.parts import HeadWiring
from tests.support.tiny import (
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

MAX_NEW_TOKENS = 24


def theirs(
    model: PreTrainedModel,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
    first_module: str = r"model\.layers\.2.*",
) -> dict[int, list[int]]:
    """Length of the sequence -> the drafts that transformers made after it."""
    drafts: dict[int, list[int]] = {}
    forward = MtpModel.forward

    def recording(self: MtpModel, *args: Any, full_input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = forward(self, *args, full_input_ids=full_input_ids, **kwargs)
        drafts[full_input_ids.shape[1]] = out[0][0].tolist()
        return out

    # The reference knows the head's tensors by the layer numbers of the published models alone.
    model._keys_to_ignore_on_load_unexpected = [first_module]
    monkeypatch.setattr(MtpModel, "forward", recording)
    model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        use_mtp=True,
        pad_token_id=0,
    )
    return drafts


def ours(folder: Path, prompt: list[int], k: int = 1) -> dict[int, list[int]]:
    """Length of the sequence -> our drafts after it, position 0's embedding kept as theirs is."""
    overrides = HeadWiring(first_embed="kept", hidden_in="post", chain="post")
    where = (torch.device("cpu"), torch.float32)
    model = load_model(Loading(str(folder), None, True, *where, wiring=overrides))
    spec = make_speculator(model, max_batch_size=1, room=24 + MAX_NEW_TOKENS + 2 * k)
    state = make_state(spec, k, 1)
    prefilled = prefill(spec, [prompt], max_num_tokens=64)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    rows = state.rows(1)
    drafts: dict[int, list[int]] = {}
    while rows.active.item():
        # seq_len leaves out the newest token, whose KV is not yet written.
        drafts[int(rows.seq_len) + 1] = rows.drafts[0].tolist()
        iteration(spec, rows)
    return drafts


def test_drafts_equal_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path, "deepseek_v3", family=DEEPSEEK, seed=3)
    for prompt in random_prompts(2, seed=2):
        expected = theirs(reference_model(folder), prompt, monkeypatch)
        assert len(expected) > MAX_NEW_TOKENS // 2
        assert len({draft for drafts in expected.values() for draft in drafts}) > 4
        got = ours(folder, prompt)
        assert {length: got.get(length) for length in expected} == expected
        monkeypatch.undo()


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe"])
def test_drafts_of_three_modules_equal_transformers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own KV of the prompt and of the accepted tokens."""
    made = {"family": DEEPSEEK, "seed": 3, "num_modules": 3, "num_nextn_predict_layers": 3}
    folder = make_checkpoint(tmp_path, kind, **made)
    for prompt in random_prompts(1, seed=2):
        model = reference_model(folder)
        expected = theirs(model, prompt, monkeypatch, r"(^|\.)layers\.[234]\.")
        assert len(expected) > MAX_NEW_TOKENS // 4
        assert all(len(drafts) == 3 for drafts in expected.values())
        got = ours(folder, prompt, 3)
        assert {length: got.get(length) for length in expected} == expected
        monkeypatch.undo()
