"""DFlash in plain torch, slow: every forward is over the whole sequence, without a KV cache.

It shares no code with the package. The target is transformers' own, and its hidden states are those
that it returns. The drafter's tensors are read from its file.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedModel

from tests.support.dflash import MASK, Form
from tests.support.eagle3 import Tensors, read_head


class PlainDrafter:
    """A drafter of ``form`` for ``target``."""

    def __init__(self, form: Form, folder: Path, target: PreTrainedModel) -> None:
        self.form = form
        self.config = form.config
        self.target = target
        self.tensors: Tensors = read_head(folder)

    @torch.no_grad()
    def drafts(self, tokens: list[int], k: int) -> list[int]:
        """The k drafts after ``tokens``. The context is the target's states at all tokens but the
        newest, which the block begins with."""
        states = self.target(torch.tensor([tokens[:-1]]), output_hidden_states=True).hidden_states
        read = [states[number + 1][0] for number in self.form.target_layer_ids]
        context = self._norm(torch.cat(read, -1) @ self.tensors["fc.weight"].T, "hidden_norm")
        block = self.target.get_input_embeddings().weight[torch.tensor([tokens[-1], *[MASK] * k])]
        for number in range(self.config["num_hidden_layers"]):
            block = self._layer(number, block, context)
        normed = self._norm(block, "norm")
        logits = normed @ self.target.get_output_embeddings().weight.T
        drafts: list[int] = logits[1:].argmax(-1).tolist()
        return drafts

    def _layer(self, number: int, block: Tensor, context: Tensor) -> Tensor:
        name = f"layers.{number}"
        states = block + self._attended(
            number, self._norm(block, f"{name}.input_layernorm"), context
        )
        normed = self._norm(states, f"{name}.post_attention_layernorm")
        gate, up = (self._projected(normed, f"{name}.mlp.{each}_proj") for each in ("gate", "up"))
        return states + self._projected(silu(gate) * up, f"{name}.mlp.down_proj")

    def _attended(self, number: int, block: Tensor, context: Tensor) -> Tensor:
        name, dim = f"layers.{number}.self_attn", self.config["head_dim"]
        first, total = len(context), len(context) + len(block)
        rows = torch.cat([context, block])
        query = self._projected(block, f"{name}.q_proj").unflatten(-1, (-1, dim))
        key = self._projected(rows, f"{name}.k_proj").unflatten(-1, (-1, dim))
        value = self._projected(rows, f"{name}.v_proj").unflatten(-1, (-1, dim))
        query = self._rotated(self._norm(query, f"{name}.q_norm"), torch.arange(first, total))
        key = self._rotated(self._norm(key, f"{name}.k_norm"), torch.arange(total))
        seen = self._seen(number, torch.arange(first, total)[:, None], torch.arange(total))
        shared = query.shape[1] // key.shape[1]
        heads = []
        for head in range(query.shape[1]):
            of_head = key[:, head // shared], value[:, head // shared]
            scores = query[:, head] @ of_head[0].T / dim**0.5
            heads.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ of_head[1])
        return self._projected(torch.cat(heads, -1), f"{name}.o_proj")

    def _seen(self, number: int, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) | torch.tensor(number not in self.form.causal_layers)
        types = self.config.get("layer_types")
        if types is not None and types[number] == "sliding_attention":
            seen = seen & ((query - key).abs() < self.config["sliding_window"])
        return seen

    def _projected(self, x: Tensor, name: str) -> Tensor:
        out = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return out if bias is None else out + bias

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return x * scale * self.tensors[f"{name}.weight"]

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        frequencies = self.config["rope_theta"] ** (-torch.arange(half) / half)
        angles = positions[:, None] * frequencies
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        one, other = x[..., :half], x[..., half:]
        return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)
