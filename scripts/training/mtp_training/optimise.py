"""AdamW under a budget of time or of steps, keeping the weights of least validation loss."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP_FRAC = 0.02
WEIGHT_DECAY = 0.1
NUM_REPORTS = 12

Schedule = Callable[[float], float]
"""The share of the peak learning rate at a progress of 0..1."""


@dataclass
class Budget:
    """How long to train: ``seconds``, or ``steps`` where those are given instead.

    A time budget holds on any machine; the number of steps that fitted is then a result.
    """

    seconds: float | None = None
    steps: int | None = None
    start: float = field(default_factory=time.monotonic)

    def progress(self, step: int) -> float:
        """The fraction that is used up after ``step`` steps."""
        if self.steps is not None:
            return step / self.steps
        assert self.seconds is not None
        return (time.monotonic() - self.start) / self.seconds


def linear(progress: float) -> float:
    """A short linear rise, then down to zero along a line."""
    return min(progress / WARM_UP_FRAC, 1.0 - progress)


def cosine(progress: float) -> float:
    """A short linear rise, then down to zero along half a cosine."""
    return min(progress / WARM_UP_FRAC, (1.0 + math.cos(math.pi * progress)) / 2)


def optimise(
    module: nn.Module,
    peak_lr: float,
    budget: Budget,
    loss_of: Callable[[float], Tensor],
    validation_loss: Callable[[], float],
    schedule: Schedule = linear,
) -> dict[str, Any]:
    """Train ``module`` until the budget is spent, and then take the weights of least validation
    loss. ``loss_of`` and the learning rate follow progress, the fraction of the budget used."""
    optimizer = make_optimizer(module)
    reports: list[dict[str, float]] = []
    best = {"validation_loss": math.inf}
    best_state = module.state_dict()
    step, progress = 0, 0.0
    while progress < 1:
        set_learning_rate(optimizer, peak_lr * schedule(progress))
        loss = loss_of(progress)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        progress = budget.progress(step)
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


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        # Never quite zero: the first step and the last are steps too.
        group["lr"] = lr + 1e-8
