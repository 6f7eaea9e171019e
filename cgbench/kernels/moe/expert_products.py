"""The experts of a mixture applied to tokens, in torch: the definition of ``triton_experts``."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.block_scales import dequantised, scaled_linear


class ExpertScales(NamedTuple):
    """Of FP8 weights ``[E, N, K]``: ``scale [E, R, C]`` in float32, and ``row_blocks [N]``, each
    row's of them, as ``kernels.fp8.block_scales`` has them."""

    scale: Tensor
    row_blocks: Tensor


@dataclass(frozen=True, slots=True)
class Experts:
    """One layer's weights: ``gate_up [E, 2 * I, H]`` and ``down [E, H, I]``, both contiguous, and
    their scales where they are FP8."""

    gate_up: Tensor
    down: Tensor
    gate_up_scales: ExpertScales | None = None
    down_scales: ExpertScales | None = None

    def values(self, dtype: torch.dtype) -> "Experts":
        """The same with plain weights: FP8 ones are replaced by what they are worth."""
        pairs = (self.gate_up, self.gate_up_scales), (self.down, self.down_scales)
        gate_up, down = (
            weight if scales is None else dequantised(weight, *scales, dtype)
            for weight, scales in pairs
        )
        return Experts(gate_up, down)

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
        gate, up = _of_expert(x[token], experts.gate_up, experts.gate_up_scales, expert).chunk(
            2, dim=-1
        )
        activated = F.silu(gate) * up
        parts[token, slot] = _of_expert(
            activated.float(), experts.down, experts.down_scales, expert
        )
    total = torch.zeros_like(x, dtype=torch.float32)
    for column in range(chosen.shape[1]):
        total += weights[:, column, None].float() * parts[:, column]
    if residual is not None:
        total += residual.float()
    return total.to(x.dtype)


def _of_expert(x: Tensor, weight: Tensor, scales: ExpertScales | None, expert: int) -> Tensor:
    """The product of ``x`` and one expert's weights, in the type of ``x``."""
    if scales is None:
        return F.linear(x, weight[expert].to(x.dtype))
    return scaled_linear(x, weight[expert], None, scales.scale[expert], scales.row_blocks)
