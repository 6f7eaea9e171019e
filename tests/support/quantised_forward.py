"""W8A8 by transformers alone: a model of dequantised weights in float32, whose layers round what
they are given to FP8. It shares no code with the products that it is compared with."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel


def rounded(x: Tensor, columns: int | None) -> Tensor:
    """Each row of ``x [..., K]`` to multiples of a scale that e4m3 has: of its largest element over
    448, in every ``columns`` columns, or in all of them."""
    parts = [x] if columns is None else list(x.float().split(columns, dim=-1))
    made = []
    for part in parts:
        scale = part.abs().max(-1, keepdim=True).values / torch.tensor(448.0)
        steps = torch.where(scale > 0, part / scale, 0.0)
        made.append(steps.to(torch.float8_e4m3fn).float() * scale)
    return torch.cat(made, -1)


def quantising_model(
    folder: Path, scaled: Collection[str], columns: int | None, **how: Any
) -> PreTrainedModel:
    """The model in ``folder``, of plain weights, whose parameters ``scaled`` multiply rounded rows.

    ``kv_b_proj`` does not, because latent attention absorbs it.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **how
    ).eval()
    for name in scaled:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf == "weight" and not owner.endswith("kv_b_proj"):
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0], columns),))
        elif leaf == "down_proj":
            experts: Any = module
            experts.forward = lambda *choice, own=module: rounding_experts(own, columns, *choice)
    return model


def rounding_experts(
    experts: Any, columns: int | None, hidden: Tensor, chosen: Tensor, weights: Tensor
) -> Tensor:
    """Each pair of a token and its expert for itself."""
    out = torch.zeros_like(hidden)
    for token, numbers in enumerate(chosen.tolist()):
        for slot, expert in enumerate(numbers):
            row = rounded(hidden[token], columns)
            gate, up = F.linear(row, experts.gate_up_proj[expert]).chunk(2, -1)
            row = rounded(F.silu(gate) * up, columns)
            out[token] += weights[token, slot] * F.linear(row, experts.down_proj[expert])
    return out


@torch.inference_mode()
def greedy(model: nn.Module, prompt: Sequence[int], count: int) -> list[int]:
    """The ``count`` tokens after ``prompt``, each by a forward over all before it."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]
