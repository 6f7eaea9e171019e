"""The head's training: its own recurrent chain, held against the frozen target."""

from typing import Any

import torch
from torch import Tensor

from mtp_head.dataset import Dataset
from mtp_training.losses import chain_loss
from mtp_training.model import Model
from mtp_training.optimise import Budget, cosine, optimise

# A later draft is asked for only where the ones before it were right.
STEP_DECAY = 0.8


def step_weights(spec_tokens: int) -> tuple[float, ...]:
    return tuple(STEP_DECAY**step for step in range(spec_tokens))


def train_head(
    model: Model,
    train: Dataset,
    held_out: Dataset,
    *,
    spec_tokens: int,
    tokens_per_batch: int,
    peak_lr: float,
    budget: Budget,
) -> dict[str, Any]:
    """The head on the generated text, as many epochs as the budget holds; returns its history."""
    weights = step_weights(spec_tokens)
    batches = train.epochs(tokens_per_batch, spec_tokens)
    unseen = held_out.batches(tokens_per_batch, spec_tokens)

    def loss(_: float) -> Tensor:
        with model.autocast():
            return chain_loss(model, *next(batches), weights)

    @torch.no_grad()
    def validation_loss() -> float:
        with model.autocast():
            losses = [chain_loss(model, *held_out.rows(*each), weights) for each in unseen]
        sizes = torch.tensor([len(index) for index, _ in unseen], device=model.device)
        return ((torch.stack(losses) * sizes).sum() / sizes.sum()).item()

    return optimise(model.head, peak_lr, budget, loss, validation_loss, cosine)
