"""Losses on each split, and greedy acceptance of the head's drafts."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from default_model.chain import CausalAttention, positions, run_chain
from default_model.config import Shapes
from default_model.corpus import Corpus
from default_model.generation import distinct_length, ended_length, generation_copy, greedy
from default_model.losses import target_loss
from default_model.model import Model


def parameter_counts(model: Model) -> dict[str, int]:
    parts = {"target": model.target.model, "head": model.head}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def losses(model: Model, data: Path) -> dict[str, float]:
    """The target's loss on each split, on as much of the training text as there is held out."""
    held_out = Corpus(data / "held_out.bin", model.device).in_order(Shapes.head_length)
    validation = Corpus(data / "validation.bin", model.device).in_order(Shapes.head_length)
    torch.manual_seed(0)
    training = Corpus(data / "train.bin", model.device).windows(*held_out.shape)
    splits = {"train": training, "validation": validation, "held_out": held_out}
    return {name: round(target_loss(model, windows), 3) for name, windows in splits.items()}


def acceptance(
    model: Model, prompts: list[list[int]], num_new_tokens: int, spec_tokens: int
) -> dict[str, Any]:
    """Acceptance over all prompts, with and without what follows a first repeated 8-gram.

    A small model soon repeats itself, and repetition is easy to draft: the first number is the
    honest one, the second is what a benchmark that decodes to a fixed length will see.
    """
    generator = generation_copy(model.target.model, model.target.dtype)
    distinct, whole, num_distinct = [], [], 0
    for prompt in prompts:
        full = greedy(generator, torch.tensor([prompt]), num_new_tokens)
        drafts = drafts_of_rows(model, full, spec_tokens)[0]
        new_tokens = full[:, len(prompt) :]
        before_repeat, before_end = int(distinct_length(new_tokens)), int(ended_length(new_tokens))
        num_distinct += before_repeat
        distinct += walk(full[0, : len(prompt) + before_repeat], len(prompt), drafts)
        whole += walk(full[0, : len(prompt) + before_end], len(prompt), drafts)
    return {
        "prompts": len(prompts),
        "tokens_before_repeat": num_distinct,
        "before_repeat": summary(distinct, spec_tokens),
        "all_tokens": summary(whole, spec_tokens),
    }


def summary(accepted: list[int], spec_tokens: int) -> dict[str, Any]:
    """Rates from the drafts accepted by each iteration."""
    count = max(1, len(accepted))
    rates = [sum(a >= position for a in accepted) / count for position in range(1, spec_tokens + 1)]
    return {
        "iterations": len(accepted),
        "acceptance_rate_per_pos": [round(rate, 3) for rate in rates],
        "mean_acceptance_length": round(1 + sum(rates), 3),
    }


@torch.no_grad()
def drafts_of_rows(model: Model, full: Tensor, spec_tokens: int) -> Tensor:
    """``[B, L]`` ids to ``[B, L-1, k]``: what the head would draft if an iteration began there.

    Row i knows the target's hidden state at i and token i+1; after that it follows its own drafts.
    """
    hidden = model.target.forward(full, positions(full), CausalAttention())
    logits = run_chain(
        model.target,
        model.head,
        hidden.pre_norm[:, :-1],
        lambda step, before: full[:, 1:] if step == 1 else before[-1].argmax(-1),
        spec_tokens,
    )
    return torch.stack([step.argmax(-1) for step in logits], dim=-1)


def walk(tokens: Tensor, prompt_length: int, drafts: Tensor) -> list[int]:
    """Decode ``tokens [L]`` again by iterations; returns the drafts that each accepted.

    Token i+1 is the newest when row i drafts i+2..i+k+1. Since ``tokens`` is the target's greedy
    text, the drafts accepted are the leading ones that equal it. An iteration that would look
    past the end is not begun: its acceptance could not be known.
    """
    spec_tokens = drafts.shape[1]
    accepted, row = [], prompt_length - 1
    while row + 1 + spec_tokens < len(tokens):
        wanted = tokens[row + 2 : row + 2 + spec_tokens]
        accepted.append(int((drafts[row] == wanted).int().cumprod(0).sum()))
        row += accepted[-1] + 1
    return accepted
