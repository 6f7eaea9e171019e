"""The losses: next token for the target, the next but one beside it, and the head's own chain."""

import torch
import torch.nn.functional as F
from torch import Tensor

from default_model.chain import CausalAttention, positions, run_chain
from default_model.config import DRAFT_STEPS
from default_model.generation import GeneratedText
from default_model.model import Model

STEP_WEIGHTS = (1.0, 0.9, 0.8, 0.7)
# Half the target's distribution, half its first choice: greedy acceptance asks for the second,
# and the first says how near the other tokens were.
HARD_LABEL_SHARE = 0.5
MTP_LOSS_WEIGHT = 0.3


def joint_loss(model: Model, ids: Tensor) -> Tensor:
    """Next-token loss, and the head's first step on the token after next; ``ids [B, L]``."""
    hidden = model.target.forward(ids, positions(ids), CausalAttention())
    own = cross_entropy(model.target.logits(hidden.post_norm[:, :-1]), ids[:, 1:])
    (draft,) = run_chain(
        model.target, model.head, hidden.pre_norm[:, :-2], lambda *_: ids[:, 1:-1], 1
    )
    return own + MTP_LOSS_WEIGHT * cross_entropy(draft, ids[:, 2:])


def chain_loss(model: Model, ids: Tensor, counted: Tensor) -> Tensor:
    """Each step against what the target itself predicts there; ``ids``, ``counted`` ``[B, L]``.

    A row counts at a step where the token it predicts does.
    """
    with torch.no_grad():
        hidden = model.target.forward(ids, positions(ids), CausalAttention())
        teacher = soften(model.target.logits(hidden.post_norm))
    rows = ids.shape[1] - DRAFT_STEPS - 1
    drafts = run_chain(
        model.target,
        model.head,
        hidden.pre_norm[:, :rows],
        lambda step, _: ids[:, step : step + rows],
        DRAFT_STEPS,
    )
    total = torch.zeros((), device=ids.device)
    for step, (logits, weight) in enumerate(zip(drafts, STEP_WEIGHTS, strict=True), start=1):
        goal = teacher[:, step : step + rows]
        mask = counted[:, step + 1 : step + 1 + rows]
        losses = F.cross_entropy(logits.flatten(0, 1), goal.flatten(0, 1), reduction="none")
        total = total + weight * (losses * mask.flatten()).sum() / mask.sum().clamp(min=1)
    return total / sum(STEP_WEIGHTS)


def soften(logits: Tensor) -> Tensor:
    """The distribution the head is to match, ``[B, L, vocab]``."""
    soft = (1 - HARD_LABEL_SHARE) * logits.float().softmax(-1)
    choice = logits.argmax(-1, keepdim=True)
    share = torch.full_like(choice, HARD_LABEL_SHARE, dtype=soft.dtype)
    return soft.scatter_add_(-1, choice, share)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


@torch.no_grad()
def target_loss(model: Model, windows: Tensor) -> float:
    """The target's mean next-token loss in nats over ``[N, L]`` windows."""
    losses = []
    for ids in windows.split(8):
        with model.autocast():
            hidden = model.target.forward(ids, positions(ids), CausalAttention())
            logits = model.target.logits(hidden.post_norm[:, :-1])
        losses += [cross_entropy(logits, ids[:, 1:])] * len(ids)
    return torch.stack(losses).mean().item()


@torch.no_grad()
def head_loss(model: Model, text: GeneratedText) -> float:
    """The head's training loss over all of ``text``."""
    losses = []
    for ids, counted in zip(text.ids.split(128), text.counted.split(128), strict=True):
        with model.autocast():
            losses.append(chain_loss(model, ids, counted))
    return torch.stack(losses).mean().item()
