"""Multiply few tokens by their experts, in Triton: each chosen expert's weights are read once.

Two forms share the kernels of ``triton_expert_products``. If few experts are chosen twice, a
program takes one chosen pair of token and expert, and nothing is sorted. If many are, a small
kernel first lists each expert's pairs, and a program takes one expert. Grids depend on sizes alone,
so routing may change between the replays of a graph.

A shared expert runs in the same launches, by further programs (``triton_shared``).

A token's sums run over K and over its slots in one order, whatever other tokens choose.

With W8A8 a kernel ahead of each product quantises its rows (``fp8.token_values``), and the tensor
cores multiply FP8 numbers.
"""

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from cgbench.kernels.counters import arrivals
from cgbench.kernels.fp8.block_scales import column_block
from cgbench.kernels.fp8.triton_tokens import quantised_tokens
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.moe.expert_plan import Plan, Tiling, fitted, plan_of
from cgbench.kernels.moe.expert_products import Choice, Experts, ExpertScales
from cgbench.kernels.moe.triton_expert_products import (
    down_kernel,
    gate_up_kernel,
    list_kernel,
    sum_kernel,
)
from cgbench.kernels.moe.triton_shared import (
    SharedCall,
    shared_by_products,
    shared_call,
    shared_product,
)
from cgbench.kernels.triton_linear import lines_asked

PAIRS_A_STEP, PAIRS_A_WARP = 1024, 256
COLUMNS_A_SUM = 512
MAX_ARRIVALS = 1 << 17
FIRST_PROGRAMS = 512
"""So many programs, or nearly, are on the device at once: four a multiprocessor."""


def apply(
    experts: Experts, x: Tensor, choice: Choice, residual: Tensor | None, plan: Plan | None = None
) -> Tensor:
    """Compute ``expert_products.apply_by_torch``, with parts rounded to the type of ``x``.

    If ``plan`` is None, ``plan_of`` chooses it. The experts must take in a shared expert, if there
    is one (``expert_products.takes_in``).
    """
    plan = plan or plan_of(experts, *choice.chosen.shape)
    if experts.shared is not None and not plan.takes_shared:
        residual = shared_by_products(experts, x, choice, residual)
        experts = experts.without_shared()
    plan = fitted(plan, experts)
    shared = shared_call(experts, x)
    call = _Call(experts, choice, plan, early(x.device), shared)
    lists = _listed(call) if plan.has_lists else _no_lists(x.device)
    activated = _gate_up(call, x.contiguous(), lists)
    residual = None if residual is None else residual.contiguous()
    parts = x.new_empty(call.num_pairs, x.shape[1])
    out = torch.empty_like(x)
    _down(call, activated, lists, parts, residual, out)
    if plan.has_lists:
        _sum(call, parts, residual, out)
    return out


class _Lists(NamedTuple):
    """Lists hold ``pairs [E, T]``, of which each expert has the first ``counts [E]``."""

    pairs: Tensor
    counts: Tensor


@functools.cache
def _no_lists(device: torch.device) -> _Lists:
    nothing = torch.zeros(1, dtype=torch.int32, device=device)
    return _Lists(nothing, nothing)


class _Call(NamedTuple):
    """A call holds the arguments that all its kernels share."""

    experts: Experts
    choice: Choice
    plan: Plan
    is_early: bool
    shared: SharedCall | None

    @property
    def num_pairs(self) -> int:
        """Return the number of pairs of a token and an expert, or a piece of the shared one."""
        return self.choice.num_pairs + (0 if self.shared is None else self.shared.num_pairs)

    @property
    def shared_weights(self) -> Tensor | None:
        """Return the shared expert's weight for each token, ``[T]``, if a gate makes it."""
        return None if self.shared is None else self.shared.weights

    @property
    def routing(self) -> tuple[Tensor, Tensor, int, int]:
        """Return the arguments of ``chosen_by``."""
        chosen, padding = self.choice.chosen, self.choice.padding
        if padding is None:
            return chosen, chosen, -1, 1
        return chosen, padding.slots, padding.scratch_slot, padding.query_len

    @property
    def groups(self) -> int:
        """Return the programs a tile of weights: one an expert, or one a pair."""
        return self.experts.num_experts if self.plan.has_lists else self.choice.num_pairs

    @property
    def constants(self) -> dict[str, int]:
        """Return the keywords of every kernel."""
        return {
            "TOP_K": self.choice.chosen.shape[1],
            "NUM_EXPERTS": self.experts.num_experts,
            "HAS_PADDING": self.choice.padding is not None,
            "EARLY": self.is_early,
            **launch_keywords(self.choice.chosen.device),
        }

    @property
    def of_sum(self) -> dict[str, int]:
        """Return the keywords of a kernel that sums a token's parts."""
        shared = self.shared
        return {
            "PIECES": 0 if shared is None else shared.pieces,
            "HAS_GATE": self.shared_weights is not None,
        }

    def of_product(
        self,
        tiling: Tiling,
        weight: Tensor,
        scales: ExpertScales | None,
        dtype: torch.dtype,
        *,
        is_even: bool,
    ) -> dict[str, int | str]:
        """Return the keywords of a product's kernel. ``dtype`` is the tokens'."""
        grid = (0, 0) if scales is None else tuple(scales.scale.shape[1:])
        columns = 0 if scales is None else column_block(weight.shape[2], grid[1])
        return {
            "SCALE_ROWS": grid[0],
            "SCALE_COLUMNS": grid[1],
            "COLUMNS_A_SCALE": columns,
            "IS_W8A8": self.experts.is_w8a8 and scales is not None,
            "HAS_LISTS": self.plan.has_lists,
            "IS_EVEN": is_even and weight.shape[2] % tiling.block_k == 0,
            "BLOCK_N": tiling.block_n,
            "BLOCK_K": tiling.block_k,
            "BLOCK_M": tiling.block_m,
            # Torch's own products of float32 round no operand.
            "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
            **self.constants,
        }


def _listed(call: _Call) -> _Lists:
    num_experts, num_tokens = call.experts.num_experts, len(call.choice.chosen)
    device = call.choice.chosen.device
    pairs = torch.empty(num_experts, num_tokens, dtype=torch.int32, device=device)
    counts = torch.empty(num_experts, dtype=torch.int32, device=device)
    # A step waits for the one before it, so few are taken.
    step = min(PAIRS_A_STEP, triton.next_power_of_2(call.choice.num_pairs))
    list_kernel[(num_experts,)](
        *call.routing,
        pairs,
        counts,
        call.choice.num_pairs,
        num_tokens,
        BLOCK=step,
        num_warps=max(1, step // PAIRS_A_WARP),
        **call.constants,
    )
    return _Lists(pairs, counts)


def _rows_of(call: _Call, x: Tensor, scales: ExpertScales | None) -> tuple[Tensor, Tensor | None]:
    """Return the rows that a product multiplies, and their scales if they are quantised."""
    if scales is None or not call.experts.is_w8a8:
        return x, None
    return quantised_tokens(x, scales.scale.shape[2])


def _gate_up(call: _Call, x: Tensor, lists: _Lists) -> Tensor:
    """Return ``silu(gate) * up`` of every pair, ``[T * K, I]``.

    Pairs of a shared expert's pieces follow.
    """
    weight, tiling = call.experts.gate_up, call.plan.gate_up
    num_columns = call.experts.intermediate_size
    activated = x.new_empty(call.num_pairs, num_columns)
    is_even = num_columns % (tiling.block_n // 2) == 0
    scales = call.experts.gate_up_scales
    tiles = triton.cdiv(2 * num_columns, tiling.block_n)
    shared = shared_product(call.shared, is_down=False, block_m=tiling.block_m)
    # A program of the last groups multiplies a token by the shared expert's gate.
    gate_groups = 0 if call.shared_weights is None else triton.cdiv(len(x), tiles)
    gate_up_kernel[(tiles, shared.num_groups + call.groups + gate_groups)](
        *_rows_of(call, x, scales),
        x,
        weight,
        *(scales or (None, None)),
        *call.routing,
        *lists,
        *shared.arguments,
        None if call.experts.shared is None else call.experts.shared.gate,
        call.shared_weights,
        activated,
        len(x),
        x.shape[1],
        num_columns,
        ASKS_EARLY=call.plan.asks_early,
        **call.of_sum,
        **shared.constants,
        **call.of_product(tiling, weight, scales, x.dtype, is_even=is_even),
    )
    return activated


def _lines_asked(call: _Call) -> int:
    """Return how many lines of each row of down's weights a first program asks for early."""
    tiling, weight = call.plan.down, call.experts.down
    if not call.plan.asks_early:
        return 0
    programs = triton.cdiv(weight.shape[1], tiling.block_n) * call.groups
    return lines_asked(
        min(programs, FIRST_PROGRAMS) * tiling.block_n, weight.shape[2] * weight.itemsize
    )


def _down(
    call: _Call,
    activated: Tensor,
    lists: _Lists,
    parts: Tensor,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    """Write every pair's part into ``parts [T * K, H]``.

    Without lists, write their sums into ``out``.
    """
    weight, tiling = call.experts.down, call.plan.down
    num_tokens, num_outputs = out.shape
    tiles = triton.cdiv(num_outputs, tiling.block_n)
    assert call.plan.has_lists or num_tokens * tiles <= MAX_ARRIVALS
    scales = call.experts.down_scales
    is_even = num_outputs % tiling.block_n == 0
    shared = shared_product(call.shared, is_down=True, block_m=tiling.block_m)
    down_kernel[(tiles, shared.num_groups + call.groups)](
        *_rows_of(call, activated, scales),
        weight,
        *(scales or (None, None)),
        *call.routing,
        *lists,
        *shared.arguments,
        call.shared_weights,
        call.choice.weights,
        residual,
        parts,
        arrivals("experts", MAX_ARRIVALS, out.device),
        out,
        num_tokens,
        activated.shape[1],
        num_outputs,
        HAS_RESIDUAL=residual is not None,
        LINES_ASKED=_lines_asked(call),
        FIRST_PROGRAMS=FIRST_PROGRAMS,
        **call.of_sum,
        **shared.constants,
        **call.of_product(tiling, weight, scales, out.dtype, is_even=is_even),
    )


def _sum(call: _Call, parts: Tensor, residual: Tensor | None, out: Tensor) -> None:
    num_tokens, num_outputs = out.shape
    sum_kernel[(num_tokens, triton.cdiv(num_outputs, COLUMNS_A_SUM))](
        parts,
        *call.routing,
        call.choice.weights,
        call.shared_weights,
        residual,
        out,
        num_tokens,
        num_outputs,
        HAS_RESIDUAL=residual is not None,
        BLOCK_N=COLUMNS_A_SUM,
        **call.of_sum,
        **call.constants,
    )
