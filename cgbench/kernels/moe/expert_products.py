"""Apply the experts of a mixture to tokens, in torch. This defines ``triton_experts``."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.block_scales import dequantised
from cgbench.kernels.fp8.scaled_products import scaled_linear


class ExpertScales(NamedTuple):
    """Expert scales are the numbers that FP8 weights ``[E, N, K]`` are multiplied by.

    ``scale [E, R, C]`` is in float32. ``row_blocks [N]`` is the row of ``scale`` that each row of
    weights reads, as in ``kernels.fp8.block_scales``.
    """

    scale: Tensor
    row_blocks: Tensor


@dataclass(frozen=True, slots=True)
class Experts:
    """An ``Experts`` holds the weights of one layer's experts.

    ``gate_up [E, 2 * I, H]`` and ``down [E, H, I]`` are contiguous. FP8 weights have scales.
    """

    gate_up: Tensor
    down: Tensor
    gate_up_scales: ExpertScales | None = None
    down_scales: ExpertScales | None = None
    is_w8a8: bool = False
    """Whether tokens and activations are quantised, as in ``kernels.fp8.token_values``."""

    def values(self, dtype: torch.dtype) -> "Experts":
        """Return the same experts with FP8 weights replaced by their values in ``dtype``."""
        pairs = (self.gate_up, self.gate_up_scales), (self.down, self.down_scales)
        gate_up, down = (
            weight if scales is None else dequantised(weight, *scales, dtype)
            for weight, scales in pairs
        )
        return Experts(gate_up, down)

    @property
    def num_experts(self) -> int:
        """Return the number of experts, E."""
        return self.gate_up.shape[0]

    @property
    def intermediate_size(self) -> int:
        """Return the size of an expert's inner activation, I."""
        return self.down.shape[2]


@dataclass(frozen=True, slots=True)
class Padding:
    """A padding shows which tokens are padding: those of a row in the scratch slot.

    ``slots [B]`` are the rows' slots. A row is ``query_len`` tokens.
    """

    slots: Tensor
    scratch_slot: int
    query_len: int

    def is_padding(self) -> Tensor:
        """Return whether each token is padding, ``[B * query_len]``."""
        return (self.slots == self.scratch_slot).repeat_interleave(self.query_len)


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice is which experts each token is sent to, and with which weights.

    ``chosen [T, K]`` are numbers of experts, distinct in a token. It and ``weights [T, K]`` are
    contiguous. For a padded token no expert is read.
    """

    chosen: Tensor
    weights: Tensor
    padding: Padding | None = None

    @property
    def num_pairs(self) -> int:
        """Return the number of pairs of a token and one of its experts."""
        return self.chosen.numel()


def apply_by_torch(experts: Experts, x: Tensor, choice: Choice, residual: Tensor | None) -> Tensor:
    """Return ``residual`` plus the weighted sum of each token's experts of ``x``, ``[T, H]``.

    A padded token's sum is 0. The activation is rounded as torch's operations round. Everything
    after it is float32, in the order of the slots, rounded once.
    """
    chosen, weights = choice.chosen, choice.weights
    if choice.padding is not None:
        chosen = chosen.masked_fill(choice.padding.is_padding()[:, None], experts.num_experts)
    parts = x.new_zeros(*chosen.shape, x.shape[1], dtype=torch.float32)
    for expert in chosen[chosen < experts.num_experts].unique().tolist():
        token, slot = torch.nonzero(chosen == expert, as_tuple=True)
        gate, up = _of_expert(experts, False, x[token], expert).chunk(2, dim=-1)
        activated = F.silu(gate) * up
        parts[token, slot] = _of_expert(experts, True, activated.float(), expert)
    total = torch.zeros_like(x, dtype=torch.float32)
    for column in range(chosen.shape[1]):
        total += weights[:, column, None].float() * parts[:, column]
    if residual is not None:
        total += residual.float()
    return total.to(x.dtype)


def _of_expert(experts: Experts, is_down: bool, x: Tensor, expert: int) -> Tensor:
    """Return the product of ``x`` and one expert's weights, in the type of ``x``."""
    weight, scales = experts.gate_up, experts.gate_up_scales
    if is_down:
        weight, scales = experts.down, experts.down_scales
    if scales is None:
        return F.linear(x, weight[expert].to(x.dtype))
    own = scales.scale[expert], scales.row_blocks
    return scaled_linear(x, weight[expert], None, *own, experts.is_w8a8)
