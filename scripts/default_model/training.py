"""The two trainings, target with head and then the head alone, and the loop that both share."""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from default_model.config import Shapes
from default_model.corpus import Corpus
from default_model.generation import GeneratedText
from default_model.losses import chain_loss, head_loss, joint_loss, target_loss
from default_model.model import Model

WARM_UP_FRAC = 0.02
TARGET_PEAK_LR, HEAD_PEAK_LR = 3e-3, 2e-3
WEIGHT_DECAY = 0.1
# The share of the head's time that goes to the corpus; the rest goes to generated text.
CORPUS_SHARE = 0.4
NUM_REPORTS = 12


def train_target(
    model: Model, corpus: Corpus, validation: Corpus, shapes: Shapes, seconds: float
) -> dict[str, Any]:
    """The target by its next-token loss, the head beside it; both are trained."""
    unseen = validation.in_order(shapes.head_length)

    def loss(_: float) -> Tensor:
        with model.autocast():
            return joint_loss(model, corpus.windows(shapes.target_batch, shapes.target_length))

    both = nn.ModuleList([model.target.model, model.head])
    return optimise(both, TARGET_PEAK_LR, seconds, loss, lambda: target_loss(model, unseen))


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

    return optimise(model.head, HEAD_PEAK_LR, seconds, loss, lambda: head_loss(model, unseen))


def optimise(
    module: nn.Module,
    peak_lr: float,
    seconds: float,
    loss_of: Callable[[float], Tensor],
    validation_loss: Callable[[], float],
) -> dict[str, Any]:
    """AdamW until the time is up, and then the weights of least validation loss.

    ``loss_of`` and the learning rate follow progress, the fraction of ``seconds`` gone: a time
    budget holds on any machine, and the number of steps that fitted is returned.
    """
    optimizer = make_optimizer(module)
    reports: list[dict[str, float]] = []
    best = {"validation_loss": math.inf}
    best_state = module.state_dict()
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        set_learning_rate(optimizer, peak_lr, progress)
        loss = loss_of(progress)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        progress = (time.monotonic() - start) / seconds
        if progress * NUM_REPORTS >= len(reports) + 1:
            reports.append(
                {"step": step, "loss": loss.item(), "validation_loss": validation_loss()}
            )
            print(f"{progress:6.1%} {reports[-1]}", flush=True)
            if reports[-1]["validation_loss"] < best["validation_loss"]:
                best, best_state = reports[-1], copy.deepcopy(module.state_dict())
    module.load_state_dict(best_state)
    return {"steps": step, "best": best, "reports": reports}


def make_optimizer(module: nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, progress: float) -> None:
    """A short linear rise, then down to zero along a line."""
    rise = min(1.0, progress / WARM_UP_FRAC)
    for group in optimizer.param_groups:
        group["lr"] = peak * min(rise, 1.0 - progress) + 1e-8
