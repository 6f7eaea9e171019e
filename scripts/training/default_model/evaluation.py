"""Losses on each split, and greedy acceptance of the head's drafts."""

from pathlib import Path
from typing import Any

import torch

from default_model.config import Shapes
from default_model.corpus import Corpus
from default_model.generation import distinct_length, ended_length, generation_copy, greedy
from default_model.losses import target_loss
from mtp_training.acceptance import summary
from mtp_training.drafts import drafts_of_rows, walk
from mtp_training.model import Model


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
