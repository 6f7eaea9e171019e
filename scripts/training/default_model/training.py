"""The two trainings: target with head, and then the head alone."""

from typing import Any

import torch
from torch import Tensor, nn

from default_model.config import Shapes
from default_model.corpus import Corpus
from default_model.generation import GeneratedText
from default_model.losses import chain_loss, head_loss, joint_loss, target_loss
from mtp_training.model import Model
from mtp_training.optimise import Budget, optimise

TARGET_PEAK_LR, HEAD_PEAK_LR = 3e-3, 2e-3
# The share of the head's time that goes to the corpus; the rest goes to generated text.
CORPUS_SHARE = 0.4


def train_target(
    model: Model, corpus: Corpus, validation: Corpus, shapes: Shapes, seconds: float
) -> dict[str, Any]:
    """The target by its next-token loss, the head beside it; both are trained."""
    unseen = validation.in_order(shapes.head_length)

    def loss(_: float) -> Tensor:
        with model.autocast():
            return joint_loss(model, corpus.windows(shapes.target_batch, shapes.target_length))

    both = nn.ModuleList([model.target.model, model.head])
    return optimise(both, TARGET_PEAK_LR, Budget(seconds), loss, lambda: target_loss(model, unseen))


def train_head(
    model: Model,
    corpus: Corpus,
    generated: GeneratedText,
    unseen: GeneratedText,
    shapes: Shapes,
    seconds: float,
) -> dict[str, Any]:
    """The head on its own chain, the target frozen: on the corpus, then on generated text."""
    model.target.model.requires_grad_(False)

    def loss(progress: float) -> Tensor:
        with model.autocast():
            if progress >= CORPUS_SHARE:
                return chain_loss(model, *generated.sample(shapes.generated_batch))
            ids = corpus.windows(shapes.head_batch, shapes.head_length)
            return chain_loss(model, ids, torch.ones_like(ids, dtype=torch.bool))

    return optimise(
        model.head, HEAD_PEAK_LR, Budget(seconds), loss, lambda: head_loss(model, unseen)
    )
