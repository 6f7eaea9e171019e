"""EAGLE-3 in plain torch, slow: every forward is over the whole sequence, without a KV cache.

It shares no code with the package. The target is transformers' own, and its hidden states are those
that it returns. The head's tensors are read from its file.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedModel

from tests.support.eagle3 import Layout, Tensors, read_head


class PlainHead:
    """A head of ``layout`` that drafts for ``target``."""

    def __init__(self, layout: Layout, folder: Path, target: PreTrainedModel) -> None:
        self.layout = layout
        self.target = target
        self.tensors: Tensors = read_head(folder)
        self.block = f"{layout.prefix}{layout.block}"
        dim = layout.hidden // layout.layer["num_attention_heads"]
        self.head_dim: int = layout.layer.get("head_dim", dim)

    @torch.no_grad()
    def drafts(self, tokens: list[int], k: int) -> list[int]:
        """The k drafts after ``tokens``. Row i pairs the target's states at token i with token
        i + 1. A row that is drafted on has the layer's output of the row before it."""
        out = self.target(torch.tensor([tokens[:-1]]), output_hidden_states=True)
        norm_input = self._last_state(tokens[:-1])
        states = [
            norm_input if layer == len(out.hidden_states) - 1 else out.hidden_states[layer][0]
            for layer in self.layout.aux_layers
        ]
        hidden = torch.cat(states, -1) @ self._weight("fc").T
        following = list(tokens[1:])
        drafts: list[int] = []
        for _ in range(k):
            outputs = self._layer(self._embedded(following), hidden)
            drafts.append(self._token(outputs[-1]))
            hidden = torch.cat([hidden, outputs[-1:]])
            following.append(drafts[-1])
        return drafts

    def _last_state(self, tokens: list[int]) -> Tensor:
        """What the final norm is given, which transformers does not return."""
        kept: list[Tensor] = []
        norm = self.target.get_decoder().norm
        handle = norm.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        self.target(torch.tensor([tokens]))
        handle.remove()
        return kept[0][0]

    def _weight(self, name: str) -> Tensor:
        return self.tensors[f"{self.layout.prefix}{name}.weight"]

    def _embedded(self, tokens: list[int]) -> Tensor:
        own = self.tensors.get(f"{self.layout.prefix}embed_tokens.weight")
        weight = self.target.get_input_embeddings().weight if own is None else own
        return weight[torch.tensor(tokens)]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        eps = self.layout.layer["rms_norm_eps"]
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.tensors[f"{name}.weight"]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        out = x @ self.tensors[f"{self.block}.{name}.weight"].T
        bias = self.tensors.get(f"{self.block}.{name}.bias")
        return out if bias is None else out + bias

    def _layer(self, embeds: Tensor, hidden: Tensor) -> Tensor:
        normed = self._norm(hidden, f"{self.block}.hidden_norm")
        both = torch.cat([self._norm(embeds, f"{self.block}.input_layernorm"), normed], -1)
        residual = normed if self.layout.norm_before_residual else hidden
        states = residual + self._attention(both)
        x = self._norm(states, f"{self.block}.post_attention_layernorm")
        gated = silu(self._linear(x, "mlp.gate_proj")) * self._linear(x, "mlp.up_proj")
        return states + self._linear(gated, "mlp.down_proj")

    def _attention(self, x: Tensor) -> Tensor:
        length = len(x)
        query, key, value = (
            self._linear(x, f"self_attn.{name}_proj").view(length, -1, self.head_dim)
            for name in "qkv"
        )
        query, key = self._rotated(query), self._rotated(key)
        group = query.shape[1] // key.shape[1]
        heads = []
        for head in range(query.shape[1]):
            of = head // group
            scores = query[:, head] @ key[:, of].T / math.sqrt(self.head_dim)
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ value[:, of])
        return self._linear(torch.cat(heads, -1), "self_attn.o_proj")

    def _rotated(self, x: Tensor) -> Tensor:
        """Each pair (i, i + half) of a head turned by its position times its frequency."""
        half = self.head_dim // 2
        angles = torch.arange(len(x))[:, None] * self._frequencies()
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        one, other = x[..., :half], x[..., half:]
        return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)

    def _frequencies(self) -> Tensor:
        base = self.layout.layer.get("rope_theta", 10000.0)
        exponents = torch.arange(0, self.head_dim, 2) / self.head_dim
        frequencies = 1.0 / base**exponents
        scaling = self.layout.layer.get("rope_scaling")
        if scaling is None:
            return frequencies
        # Llama 3.1: slow pairs are stretched, fast ones stay, and those between are mixed.
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return share * frequencies + (1 - share) * frequencies / scaling["factor"]

    def _token(self, output: Tensor) -> int:
        own = self.tensors.get("lm_head.weight")
        weight = self.target.get_output_embeddings().weight if own is None else own
        normed = self._norm(output, f"{self.layout.prefix}norm")
        token = int((normed @ weight.T).argmax())
        offsets = self.tensors.get("d2t")
        return token if offsets is None else token + int(offsets[token])
