"""The losses: next token for the target, the next but one beside it, and the head's own chain."""

import torch
import torch.nn.functional as F
from torch import Tensor

from default_model.generation import GeneratedText
from mtp_training import losses
from mtp_training.chain import CausalAttention, positions, run_chain
from mtp_training.model import Model

STEP_WEIGHTS = (1.0, 0.9, 0.8, 0.7)
MTP_LOSS_WEIGHT = 0.3


def joint_loss(model: Model, ids: Tensor) -> Tensor:
    """Next-token loss, and the head's first step on the token after next; ``ids [B, L]``."""
    hidden = model.target.forward(ids, positions(ids), CausalAttention())
    own = cross_entropy(model.target.logits(hidden.post_norm[:, :-1]), ids[:, 1:])
    (draft,) = run_chain(
        model.target, model.head, hidden.pre_norm[:, :-2], lambda *_: ids[:, 1:-1], 1
    )
    return own + MTP_LOSS_WEIGHT * cross_entropy(model.target.logits(draft), ids[:, 2:])


def chain_loss(model: Model, ids: Tensor, counted: Tensor) -> Tensor:
    """The head's chain of ``DRAFT_STEPS`` against the target; ``ids``, ``counted`` ``[B, L]``."""
    return losses.chain_loss(model, ids, counted, STEP_WEIGHTS)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


@torch.no_grad()
def target_loss(model: Model, windows: Tensor) -> float:
    """The target's mean next-token loss in nats over ``[N, L]`` windows."""
    found = []
    for ids in windows.split(8):
        with model.autocast():
            hidden = model.target.forward(ids, positions(ids), CausalAttention())
            logits = model.target.logits(hidden.post_norm[:, :-1])
        found += [cross_entropy(logits, ids[:, 1:])] * len(ids)
    return torch.stack(found).mean().item()


@torch.no_grad()
def head_loss(model: Model, text: GeneratedText) -> float:
    """The head's training loss over all of ``text``."""
    found = []
    for ids, counted in zip(text.ids.split(128), text.counted.split(128), strict=True):
        with model.autocast():
            found.append(chain_loss(model, ids, counted))
    return torch.stack(found).mean().item()
