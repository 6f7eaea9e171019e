"""Drafts, against a slow implementation with no cache, no slots and no batch.

Lossless decoding hides every mistake in the drafting path, so the drafts themselves are compared,
after every iteration and for every row.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.models.families import DEEPSEEK, EAGLE, ERNIE, MIMO
from cgbench.models.head import DraftHead
from cgbench.models.target import Target
from tests.tiny import load_tiny, make_checkpoint, make_speculator, make_state, random_prompts

MAX_NEW_TOKENS = 16
ROOM = 24 + MAX_NEW_TOKENS + 2 * 8


class GrowingAttention:
    """Causal attention over all keys seen so far, kept as one growing list a layer."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        if layer_idx in self.seen:
            before = self.seen[layer_idx]
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        self.seen[layer_idx] = key, value
        new, total = query.shape[2], key.shape[2]
        mask = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        if sliding_window is not None:
            mask &= torch.ones(new, total, dtype=torch.bool).triu(total - new - sliding_window + 1)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2)


@torch.inference_mode()
def reference_drafts(target: Target, head: DraftHead, tokens: list[int], k: int) -> list[int]:
    """k drafts after ``tokens``, whose newest has no KV yet, all recomputed from the first."""
    num_rows = len(tokens) - 1
    attention = GrowingAttention()
    positions = torch.arange(num_rows)[None]
    states = target.forward(torch.tensor([tokens[:-1]]), positions, attention)
    hidden = states.post_norm if head.family.hidden_in == "post" else states.pre_norm
    following = torch.tensor([tokens[1:]])
    drafts: list[int] = []
    for _ in range(k):
        embeds = target.embed(following)
        block_out = head(embeds, hidden, target.rope(embeds, positions), positions, attention)
        normed = head.to_logits_input(block_out[:, -1:])
        draft = int(target.logits(normed)[0, -1].argmax())
        hidden = normed if head.family.chain == "post" else block_out[:, -1:]
        drafts.append(draft)
        following = torch.tensor([[draft]])
        positions = torch.tensor([[num_rows + len(drafts) - 1]])
    return drafts


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
            assert drafts == reference_drafts(spec.target, spec.head, sequence, k)
        iteration(spec, rows)
        for i, emitted in enumerate(rows.num_emitted.tolist()):
            sequences[i] += rows.out[i, :emitted].tolist()
