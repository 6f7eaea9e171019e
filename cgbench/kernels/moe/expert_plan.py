"""Plan how a mixture's experts are applied: with lists or without, and by which tilings."""

from typing import NamedTuple

from torch import Tensor

from cgbench.kernels.fp8.block_scales import column_block
from cgbench.kernels.moe.expert_products import Experts, ExpertScales
from cgbench.kernels.moe.triton_shared import most_tokens_with

LEAST_COLUMN_BLOCK = 16
"""A scale of FP8 weights must be for at least this many columns. Fewer are no tile."""


class Tiling(NamedTuple):
    """A tiling is how one product is cut up.

    A tile is ``block_n`` rows of weights by ``block_k`` columns, for ``block_m`` tokens at a time.
    """

    block_n: int
    block_k: int
    block_m: int
    num_warps: int
    num_stages: int


class Plan(NamedTuple):
    """A plan is how the experts of one call are applied.

    It has lists or none, and a tiling for each of the two products. A shared expert runs in the
    launches or not. With ``asks_early`` down's first programs begin while gate and up end, and ask
    for their weights into L2.
    """

    has_lists: bool
    gate_up: Tiling
    down: Tiling
    takes_shared: bool = True
    asks_early: bool = False


EXPERTS_A_PAIR = 8
"""If there are at least this many experts for each pair, none is listed."""


def plan_of(experts: Experts, num_tokens: int, top_k: int) -> Plan:
    """Return the best plan, or nearly the best, of those tried on an H200.

    Source: results/h200/experts.md and experts-early.md.
    """
    is_scaled = experts.gate_up_scales is not None
    plan = (_scaled_plan_of if is_scaled else _plain_plan_of)(experts, num_tokens, top_k)
    takes_shared = num_tokens <= most_tokens_with(experts)
    # Of FP8 experts it was not measured.
    return plan._replace(takes_shared=takes_shared, asks_early=not is_scaled)


def _plain_plan_of(experts: Experts, num_tokens: int, top_k: int) -> Plan:
    pairs = num_tokens * top_k
    if num_tokens <= 2 or pairs * EXPERTS_A_PAIR <= experts.num_experts:
        deep = Tiling(64, 128, 16, 4, 4)
        return Plan(False, deep, deep)
    mean = pairs / experts.num_experts
    block_m = 16 if mean <= 6 else 32 if mean <= 20 else 64
    is_whole = experts.intermediate_size % 128 == 0
    down = Tiling(64, 128, block_m, 4, 3) if is_whole else Tiling(64, 64, block_m, 4, 6)
    return Plan(True, Tiling(64, 128, block_m, 4, 3), down)


def _scaled_plan_of(experts: Experts, num_tokens: int, top_k: int) -> Plan:
    """Return the plan of FP8 experts. Source: results/h200/fp8.md.

    As for a product of FP8 weights, small programs share a multiprocessor, because each waits for
    the steps that make its values.
    """
    pairs = num_tokens * top_k
    if experts.is_w8a8:
        return _quantised_plan_of(experts, num_tokens, pairs)
    if num_tokens <= 2 or pairs * EXPERTS_A_PAIR <= experts.num_experts:
        small = Tiling(32, 128, 8, 2, 4)
        return Plan(False, small, small)
    mean = pairs / experts.num_experts
    block_m = 8 if mean <= 2 else 16 if mean <= 6 else 32 if mean <= 20 else 64
    # The sums of 64 tokens would spill from the registers of two warps.
    tiling = Tiling(64, 128, block_m, 4 if block_m == 64 else 2, 3)
    return Plan(True, tiling, tiling)


def _quantised_plan_of(experts: Experts, num_tokens: int, pairs: int) -> Plan:
    """Return the plan of FP8 experts for quantised tokens.

    Four warps, 64 rows of weights and 16 tokens are the least that the tensor cores multiply in
    FP8. ``scripts/trials/bench_fp8.py --w8a8 --experts`` times it.
    """
    if num_tokens <= 2 or pairs * EXPERTS_A_PAIR <= experts.num_experts:
        few = Tiling(64, 128, 16, 4, 4)
        return Plan(False, few, few)
    mean = pairs / experts.num_experts
    tiling = Tiling(64, 128, 16 if mean <= 6 else 32 if mean <= 20 else 64, 4, 4)
    return Plan(True, tiling, tiling)


def can_apply(experts: Experts) -> bool:
    """Return whether ``apply`` takes these experts.

    A scale of FP8 weights must be for enough columns.
    """
    return all(
        columns is None or columns >= LEAST_COLUMN_BLOCK
        for columns in (
            _columns_a_scale(experts.gate_up, experts.gate_up_scales),
            _columns_a_scale(experts.down, experts.down_scales),
        )
    )


def _columns_a_scale(weight: Tensor, scales: ExpertScales | None) -> int | None:
    return None if scales is None else column_block(weight.shape[2], scales.scale.shape[2])


def fitted(plan: Plan, experts: Experts) -> Plan:
    """Return ``plan`` for FP8 weights, with tiles of one scale's columns."""
    gate_up = _columns_a_scale(experts.gate_up, experts.gate_up_scales)
    down = _columns_a_scale(experts.down, experts.down_scales)
    return plan._replace(gate_up=_narrowed(plan.gate_up, gate_up), down=_narrowed(plan.down, down))


def _narrowed(tiling: Tiling, columns: int | None) -> Tiling:
    return tiling if columns is None else tiling._replace(block_k=min(tiling.block_k, columns))
