"""The head's recurrent chain over whole sequences: every row at once, attention without a cache.

Training and evaluation both run it, so the head learns from exactly what it meets in decoding.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.attention import AttentionInput
from cgbench.models.heads.head import DraftHead
from cgbench.models.target import Target


class CausalAttention:
    """The target's attention over whole sequences."""

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        assert qkv.sinks is None, "targets with attention sinks cannot be trained for"
        out = F.scaled_dot_product_attention(
            qkv.query, qkv.key, qkv.value, is_causal=True, scale=qkv.scaling, enable_gqa=True
        )
        return out.transpose(1, 2)


class ChainAttention:
    """The head's attention at draft steps 1, 2, .. of every row at once; one object a chain.

    In decoding, a draft step leaves its key beside those of step 1 for all earlier rows, and the
    next iteration overwrites it. So row i sees step 1's keys of rows 0..i, and of each later
    step, its own included, row i alone.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        # Repeated here because masked fused kernels take no grouped heads.
        query = qkv.query
        groups = query.shape[1] // qkv.key.shape[1]
        self.keys.append(qkv.key.repeat_interleave(groups, dim=1))
        self.values.append(qkv.value.repeat_interleave(groups, dim=1))
        mask = self._mask(query.shape[2], query.device)
        keys, values = torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=qkv.scaling)
        return out.transpose(1, 2)

    def _mask(self, rows: int, device: torch.device) -> Tensor:
        own = torch.eye(rows, dtype=torch.bool, device=device)
        causal = torch.ones_like(own).tril()
        return torch.cat([causal, *[own] * (len(self.keys) - 1)], dim=1)


def positions(like: Tensor, first: int = 0) -> Tensor:
    """``[B, S]`` consecutive positions for ``like [B, S, ...]``."""
    batch, length = like.shape[:2]
    return torch.arange(first, first + length, device=like.device).expand(batch, length)


def run_chain(
    target: Target,
    head: DraftHead,
    hidden: Tensor,
    tokens_of_step: Callable[[int, list[Tensor]], Tensor],
    num_steps: int,
) -> list[Tensor]:
    """What the lm_head reads, ``[B, S, H]``, at steps 1..num_steps of all rows of ``hidden``.

    ``hidden [B, S, H]`` is the target's, in the form that ``head`` is fed; ``tokens_of_step(step,
    outputs so far)`` gives the ``[B, S]`` tokens of a step. Step s of row i reads token i+s,
    stands at position i+s-1 and predicts token i+s+1.
    """
    attention = ChainAttention()
    outputs: list[Tensor] = []
    for step in range(1, num_steps + 1):
        embeds = target.embed(tokens_of_step(step, outputs))
        position_ids = positions(embeds, first=step - 1)
        rope = target.rope(embeds, position_ids)
        out = head(embeds, hidden, rope, position_ids, attention)
        normed = head.to_logits_input(out)
        outputs.append(normed)
        hidden = head.to_chain(out, normed)
    return outputs
