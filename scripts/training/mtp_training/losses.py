"""The head's recurrent chain held against what the target itself predicts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cgbench.models.target import Target
from mtp_training.chain import CausalAttention, positions, run_chain
from mtp_training.model import Model

# Half the target's distribution, half its first choice: greedy acceptance asks for the second,
# and the first says how near the other tokens were.
HARD_LABEL_SHARE = 0.5

# Logits held at once, as a number of values: one gigabyte in float32.
MAX_LOGITS = 2**28


def chain_loss(model: Model, ids: Tensor, counted: Tensor, step_weights: Sequence[float]) -> Tensor:
    """The mean loss of a chain of ``len(step_weights)`` steps; ``ids``, ``counted`` ``[B, L]``.

    A row counts at a step where the token it predicts does. The target is frozen.
    """
    with torch.no_grad():
        hidden = model.target.forward(ids, positions(ids), CausalAttention())
    num_steps = len(step_weights)
    rows = ids.shape[1] - num_steps - 1
    outputs = run_chain(
        model.target,
        model.head,
        model.head.to_input(hidden)[:, :rows],
        lambda step, _: ids[:, step : step + rows],
        num_steps,
    )
    weights = row_weights(counted, step_weights, rows)
    soft_label_loss: Callable[..., Tensor] = _SoftLabelLoss.apply
    return soft_label_loss(torch.stack(outputs), hidden.post_norm, weights, model.target)


def row_weights(counted: Tensor, step_weights: Sequence[float], rows: int) -> Tensor:
    """``counted [B, L]`` to ``[k, B, rows]``: each row's share of the loss, all of which add up
    to one where every step has a row that counts."""
    shares = []
    for step, weight in enumerate(step_weights, start=1):
        mask = counted[:, step + 1 : step + 1 + rows].float()
        shares.append(weight * mask / mask.sum().clamp(min=1))
    return torch.stack(shares) / sum(step_weights)


class _SoftLabelLoss(torch.autograd.Function):
    """Cross entropy to the target's softened distribution, a few sequences at a time.

    The logits of a large vocabulary, over all rows and steps, would not fit. As the lm_head is
    frozen, only the gradient of its input is wanted, and that is known as soon as the loss is.
    """

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, target_normed: Tensor, weights: Tensor, target: Target
    ) -> Tensor:
        """``outputs [k, B, R, H]``, ``target_normed [B, L, H]``, ``weights [k, B, R]``."""
        batch, length = target_normed.shape[:2]
        size = max(1, MAX_LOGITS // (length * target.vocab_size))
        gradient = torch.empty_like(outputs)
        total = weights.new_zeros(())
        for part in torch.arange(batch).split(size):
            now = slice(int(part[0]), int(part[-1]) + 1)
            labels = soften(target.logits(target_normed[now]))
            for step, out in enumerate(outputs[:, now]):
                goal = labels[:, step + 1 : step + 1 + out.shape[1]]
                loss, gradient[step, now] = _loss_and_gradient(
                    target, out, goal, weights[step, now]
                )
                total += loss
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


def _loss_and_gradient(
    target: Target, out: Tensor, goal: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted sum of ``out [b, R, H]``'s losses to ``goal [b, R, vocab]``, and its gradient
    by ``out``: the logits' is the predicted distribution less the goal."""
    logits = target.logits(out).float()
    log_total = logits.logsumexp(-1, keepdim=True)
    losses = log_total[..., 0] - (goal * logits).sum(-1)
    error = logits.sub_(log_total).exp_().sub_(goal).mul_(weights[..., None])
    weight = target.model.get_output_embeddings().weight
    return (losses * weights).sum(), error.to(weight.dtype) @ weight


def soften(logits: Tensor) -> Tensor:
    """The distribution the head is to match, ``[B, L, vocab]``."""
    soft = logits.float().softmax(-1).mul_(1 - HARD_LABEL_SHARE)
    choice = logits.argmax(-1, keepdim=True)
    share = torch.full_like(choice, HARD_LABEL_SHARE, dtype=soft.dtype)
    return soft.scatter_add_(-1, choice, share)
