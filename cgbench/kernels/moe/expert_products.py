"""Apply the experts of a mixture to tokens, in torch. This defines ``triton_experts``."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.block_scales import FP8, column_block, dequantised
from cgbench.kernels.fp8.scaled_products import scaled_linear


class ExpertScales(NamedTuple):
    """Expert scales are the numbers that FP8 weights ``[E, N, K]`` are multiplied by.

    ``scale [E, R, C]`` is in float32. ``row_blocks [N]`` is the row of ``scale`` that each row of
    weights reads, as in ``kernels.fp8.block_scales``. A shared expert's have no dimension E.
    """

    scale: Tensor
    row_blocks: Tensor


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """A shared expert is one that every token is sent to.

    ``gate_up [2 * S, H]`` and ``down [H, S]`` are contiguous. Its weight is the sigmoid of the
    product with ``gate [1, H]``, or 1 without a gate. FP8 weights have scales.
    """

    gate_up: Tensor
    down: Tensor
    gate: Tensor | None = None
    gate_up_scales: ExpertScales | None = None
    down_scales: ExpertScales | None = None

    def values(self, dtype: torch.dtype) -> "SharedExpert":
        """Return the same expert with FP8 weights replaced by their values in ``dtype``."""
        gate_up = _values(self.gate_up, self.gate_up_scales, dtype)
        return SharedExpert(gate_up, _values(self.down, self.down_scales, dtype), self.gate)

    @property
    def intermediate_size(self) -> int:
        """Return the size of its inner activation, S."""
        return self.down.shape[1]

    def weight_of(self, x: Tensor) -> Tensor | None:
        """Return its weight for each token of ``x``, ``[T, 1]``, or None without a gate.

        It is rounded where torch's operations round.
        """
        return None if self.gate is None else F.linear(x, self.gate.to(x.dtype)).sigmoid()


@dataclass(frozen=True, slots=True)
class Experts:
    """An ``Experts`` holds the weights of one layer's experts.

    ``gate_up [E, 2 * I, H]`` and ``down [E, H, I]`` are contiguous. FP8 weights have scales. A
    ``shared`` expert's weights are tensors of their own.
    """

    gate_up: Tensor
    down: Tensor
    gate_up_scales: ExpertScales | None = None
    down_scales: ExpertScales | None = None
    is_w8a8: bool = False
    """Whether tokens and activations are quantised, as in ``kernels.fp8.token_values``."""
    shared: SharedExpert | None = None

    def values(self, dtype: torch.dtype) -> "Experts":
        """Return the same experts with FP8 weights replaced by their values in ``dtype``."""
        gate_up = _values(self.gate_up, self.gate_up_scales, dtype)
        down = _values(self.down, self.down_scales, dtype)
        shared = None if self.shared is None else self.shared.values(dtype)
        return Experts(gate_up, down, shared=shared)

    def without_shared(self) -> "Experts":
        """Return the same experts without the shared one."""
        return replace(self, shared=None)

    @property
    def num_experts(self) -> int:
        """Return the number of experts, E."""
        return self.gate_up.shape[0]

    @property
    def hidden_size(self) -> int:
        """Return the size of a token's hidden state, H."""
        return self.down.shape[1]

    @property
    def intermediate_size(self) -> int:
        """Return the size of an expert's inner activation, I."""
        return self.down.shape[2]


def _values(weight: Tensor, scales: ExpertScales | None, dtype: torch.dtype) -> Tensor:
    return weight if scales is None else dequantised(weight, *scales, dtype)


def takes_in(experts: Experts, shared: SharedExpert) -> bool:
    """Return whether the kernels of ``experts`` can compute ``shared`` too.

    Its inner size must be a multiple of theirs, because it is cut into pieces of their size. Its
    weights must be of their type, and one scale of FP8 weights for as many columns.
    """
    size, its_size, hidden = (
        experts.intermediate_size,
        shared.intermediate_size,
        experts.hidden_size,
    )
    tensors = [shared.gate_up, shared.down]
    gate = shared.gate
    if gate is not None:
        if gate.dtype == FP8 or gate.shape != (1, hidden):
            return False
        tensors.append(gate)
    return (
        its_size % size == 0
        and shared.gate_up.shape == (2 * its_size, hidden)
        and shared.down.shape == (hidden, its_size)
        and (shared.gate_up.dtype, shared.down.dtype) == (experts.gate_up.dtype, experts.down.dtype)
        and all(tensor.is_contiguous() for tensor in tensors)
        and _columns_a_scale(hidden, experts.gate_up_scales)
        == _columns_a_scale(hidden, shared.gate_up_scales)
        and _cuts_no_scale(size, its_size, experts.down_scales, shared.down_scales)
    )


def _cuts_no_scale(
    size: int, its_size: int, scales: ExpertScales | None, its_scales: ExpertScales | None
) -> bool:
    """Return whether pieces of ``size`` of ``its_size`` columns cut no scale, and read alike."""
    columns = _columns_a_scale(size, scales)
    if columns != _columns_a_scale(its_size, its_scales):
        return False
    return columns is None or size == its_size or size % columns == 0


def _columns_a_scale(num_columns: int, scales: ExpertScales | None) -> int | None:
    return None if scales is None else column_block(num_columns, scales.scale.shape[-1])


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

    A shared expert is the last of a token's experts. A padded token's sum is 0. The activation is
    rounded as torch's operations round. Everything after it is float32, in the order of the slots,
    rounded once.
    """
    chosen, weights = choice.chosen, choice.weights
    if choice.padding is not None:
        chosen = chosen.masked_fill(choice.padding.is_padding()[:, None], experts.num_experts)
    parts = x.new_zeros(*chosen.shape, x.shape[1], dtype=torch.float32)
    for expert in chosen[chosen < experts.num_experts].unique().tolist():
        token, slot = torch.nonzero(chosen == expert, as_tuple=True)
        gate_up = experts.gate_up[expert], _of_one(experts.gate_up_scales, expert)
        down = experts.down[expert], _of_one(experts.down_scales, expert)
        parts[token, slot] = _gated_mlp(x[token], gate_up, down, experts.is_w8a8)
    total = torch.zeros_like(x, dtype=torch.float32)
    for column in range(chosen.shape[1]):
        total += weights[:, column, None].float() * parts[:, column]
    if experts.shared is not None:
        part = _of_shared(experts, experts.shared, x)
        if choice.padding is not None:
            part = part.masked_fill(choice.padding.is_padding()[:, None], 0.0)
        total += part
    if residual is not None:
        total += residual.float()
    return total.to(x.dtype)


def _of_shared(experts: Experts, shared: SharedExpert, x: Tensor) -> Tensor:
    """Return the shared expert's part of every token's sum, in float32."""
    gate_up, down = (shared.gate_up, shared.gate_up_scales), (shared.down, shared.down_scales)
    part = _gated_mlp(x, gate_up, down, experts.is_w8a8)
    weight = shared.weight_of(x)
    return part if weight is None else weight.float() * part


_Weight = tuple[Tensor, ExpertScales | None]


def _gated_mlp(x: Tensor, gate_up: _Weight, down: _Weight, is_w8a8: bool) -> Tensor:
    """Return one expert's products of ``x``, the last in float32."""
    gate, up = _product(x, *gate_up, is_w8a8).chunk(2, dim=-1)
    activated = F.silu(gate) * up
    return _product(activated.float(), *down, is_w8a8)


def _of_one(scales: ExpertScales | None, expert: int) -> ExpertScales | None:
    return None if scales is None else ExpertScales(scales.scale[expert], scales.row_blocks)


def _product(x: Tensor, weight: Tensor, scales: ExpertScales | None, is_w8a8: bool) -> Tensor:
    """Return the product of ``x`` and one matrix, in the type of ``x``."""
    if scales is None:
        return F.linear(x, weight.to(x.dtype))
    return scaled_linear(x, weight, None, *scales, is_w8a8)
