"""The experts of a mixture applied to tokens, in torch: the definition of ``triton_experts``."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Experts:
    """One layer's weights: ``gate_up [E, 2 * I, H]`` and ``down [E, H, I]``, both contiguous."""

    gate_up: Tensor
    down: Tensor

    @property
    def num_experts(self) -> int:
        return self.gate_up.shape[0]

    @property
    def intermediate_size(self) -> int:
        return self.down.shape[2]


@dataclass(frozen=True, slots=True)
class Padding:
    """Which tokens are padding: those of a row whose ``slots [B]`` is the ``scratch_slot``. A row
    is ``query_len`` tokens."""

    slots: Tensor
    scratch_slot: int
    query_len: int

    def is_padding(self) -> Tensor:
        """Of each token, ``[B * query_len]``."""
        return (self.slots == self.scratch_slot).repeat_interleave(self.query_len)


@dataclass(frozen=True, slots=True)
class Choice:
    """What tokens are sent to: ``chosen [T, K]`` numbers of experts, distinct in a token, by
    ``weights [T, K]``, both contiguous. For a padded token no expert is read."""

    chosen: Tensor
    weights: Tensor
    padding: Padding | None = None

    @property
    def num_pairs(self) -> int:
        """Of a token and one of its experts."""
        return self.chosen.numel()


def apply_by_torch(experts: Experts, x: Tensor, choice: Choice, residual: Tensor | None) -> Tensor:
    """``residual`` plus the sum of each token's experts by their weights, ``[T, H]``, of ``x``.

    A padded token's sum is 0. The activation is rounded as torch's operations round. Everything
    after it is float32, in the order of the slots, rounded once.
    """
    chosen, weights = choice.chosen, choice.weights
    if choice.padding is not None:
        chosen = chosen.masked_fill(choice.padding.is_padding()[:, None], experts.num_experts)
    parts = x.new_zeros(*chosen.shape, x.shape[1], dtype=torch.float32)
    for expert in chosen[chosen < experts.num_experts].unique().tolist():
        token, slot = torch.nonzero(chosen == expert, as_tuple=True)
        gate, up = F.linear(x[token], experts.gate_up[expert]).chunk(2, dim=-1)
        activated = F.silu(gate) * up
        parts[token, slot] = F.linear(activated.float(), experts.down[expert].float())
    total = torch.zeros_like(x, dtype=torch.float32)
    for column in range(chosen.shape[1]):
        total += weights[:, column, None].float() * parts[:, column]
    if residual is not None:
        total += residual.float()
    return total.to(x.dtype)
