"""Choose experts as a router does, in torch. This defines ``triton_route``."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RouterRule:
    """A router rule is one router's arithmetic.

    Sources: the routers of qwen3_moe, qwen3_5_moe, qwen3_next, glm4_moe, deepseek_v3 and
    ernie4_5_moe in transformers 5.17.
    """

    top_k: int
    is_sigmoid: bool = False
    """A score is the sigmoid of its own logit. If not, scores are a softmax of all logits."""
    wide_logits: bool = False
    """Products are in float32. If not, they are rounded to the hidden state's type."""
    num_groups: int = 1
    """These groups of consecutive experts are ranked by the sum of their two best."""
    top_groups: int = 1
    """Only experts of this many groups can be chosen."""
    renormalises: bool = False
    """Weights are divided by their sum."""
    least_sum: float = 0.0
    added_to_sum: float = 0.0
    scaling: float = 1.0
    wide_weights: bool = False
    """Weights stay float32. If not, they are rounded to the hidden state's type."""


def route_by_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, rule: RouterRule
) -> tuple[Tensor, Tensor]:
    """Return the weights ``[T, K]`` and experts ``[T, K]`` of ``x [T, H]``, the best first.

    ``weight [E, H]`` makes the logits. ``bias [E]`` counts for the choice, and not for the weights.
    Of equal scores the lowest index is chosen.
    """
    if rule.wide_logits:
        logits = F.linear(x.float(), weight.float())
    else:
        logits = F.linear(x, weight).float()
    scores = logits.sigmoid() if rule.is_sigmoid else logits.softmax(-1)
    choice = scores if bias is None else scores + bias.float()
    if rule.num_groups > 1:
        choice = choice.masked_fill(~_in_best_groups(choice, rule), float("-inf"))
    chosen = choice.sort(dim=-1, descending=True, stable=True).indices[:, : rule.top_k]
    weights = scores.gather(1, chosen)
    if rule.renormalises:
        weights = weights / (weights.sum(-1, True).clamp(min=rule.least_sum) + rule.added_to_sum)
    weights = weights * rule.scaling
    return weights if rule.wide_weights else weights.to(x.dtype), chosen


def _in_best_groups(choice: Tensor, rule: RouterRule) -> Tensor:
    """Return whether each expert is in one of the ``top_groups``, ``[T, E]``."""
    by_group = choice.unflatten(-1, (rule.num_groups, -1))
    group_scores = by_group.topk(2, dim=-1).values.sum(-1)
    order = group_scores.sort(dim=-1, descending=True, stable=True).indices
    is_best = torch.zeros_like(group_scores, dtype=torch.bool)
    is_best.scatter_(1, order[:, : rule.top_groups], True)
    return is_best[..., None].expand_as(by_group).flatten(1)
