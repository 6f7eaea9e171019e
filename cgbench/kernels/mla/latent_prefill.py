"""A prompt's attention over its own latents runs in the expanded form, some heads at a time.

With as many queries as keys the absorbed form would multiply 576 and 512 columns where the expanded
one multiplies 192 and 128. So prefill expands the latents to keys and values, as transformers does.
It does so for a chunk of heads, because those of 128 heads and a long prompt fill gigabytes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.kernels.mla.latent_weights import LatentWeights

CHUNK_BYTES = 1 << 28
"""Most bytes of keys and values that are expanded at a time, unless one head has more."""


def heads_a_chunk(new: LatentInput) -> int:
    """Return how many heads' keys and values are expanded at a time."""
    batch, _, length, key_dim = new.query.shape
    a_head = batch * length * (key_dim + new.weights.value_size) * new.query.element_size()
    return max(1, min(new.weights.num_heads, CHUNK_BYTES // max(1, a_head)))


def expand(latent: Tensor, weights: LatentWeights) -> tuple[Tensor, Tensor]:
    """Expand ``latent [B, 1, S, rank + R]`` to keys and values of the heads of ``weights``.

    Return ``[B, H, S, key_size + R]`` and ``[B, H, S, value_size]``.
    """
    content, rotary = latent[..., : weights.rank], latent[..., weights.rank :]
    dtype = weights.working_dtype(latent)
    values = weights.by_head(dtype).flatten(0, 1)
    expanded = F.linear(content[:, 0].to(dtype), values).to(latent.dtype)
    by_head = expanded.unflatten(-1, (-1, weights.head_rows)).transpose(1, 2)
    keys, values = by_head.split([weights.key_size, weights.value_size], dim=-1)
    return torch.cat([keys, rotary.expand(-1, keys.shape[1], -1, -1)], dim=-1), values


def prefill(new: LatentInput, mask: Tensor | None) -> Tensor:
    """Attend causally over the prompts' own rows, to ``[B, S, H, value_size]``.

    ``mask [S, S]`` stands for a sliding window, and is None if all earlier rows are seen.
    """
    batch, num_heads, length, _ = new.query.shape
    out = new.query.new_empty(batch, length, num_heads, new.weights.value_size)
    step = heads_a_chunk(new)
    for first in range(0, num_heads, step):
        end = min(first + step, num_heads)
        keys, values = expand(new.latent, new.weights.heads(first, end))
        part = F.scaled_dot_product_attention(
            new.query[:, first:end],
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=new.scaling,
        )
        out[:, :, first:end] = part.transpose(1, 2)
    return out
