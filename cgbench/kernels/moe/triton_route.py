"""Route tokens in one Triton kernel: logits, scores, the choice of experts and their weights.

Programs divide the logits among them. The last one to arrive at a tile of tokens chooses for it. It
takes as many rounds of the largest score as a token takes experts. See ``router_rule``.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.counters import arrivals
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.moe.router_rule import RouterRule
from cgbench.kernels.triton_linear import ask_into_l2

MAX_TILES = 1 << 12
LINE_BYTES = 128
MOST_LINES = 16


@triton.jit  # type: ignore[untyped-decorator]
def _best(choice, number, EXPERTS: tl.constexpr):
    """Return the number of each row's largest, or the lowest number of several."""
    is_best = choice == tl.max(choice, 1, keep_dims=True)
    return tl.min(tl.where(is_best, number, EXPERTS), 1, keep_dims=True)


@triton.jit  # type: ignore[untyped-decorator]
def _without_worse_groups(
    choice, TOKENS: tl.constexpr, EXPERTS: tl.constexpr, GROUPS: tl.constexpr, BEST: tl.constexpr
):
    """Return ``choice [T, E]`` with minus infinity outside of the ``BEST`` groups."""
    SIZE: tl.constexpr = EXPERTS // GROUPS
    by_group = tl.reshape(choice, [TOKENS * GROUPS, SIZE])
    number = tl.arange(0, SIZE)[None, :]
    first = tl.max(by_group, 1)
    is_first = number == _best(by_group, number, SIZE)
    second = tl.max(tl.where(is_first, float("-inf"), by_group), 1)
    left = tl.reshape(first + second, [TOKENS, GROUPS])
    group = tl.arange(0, GROUPS)[None, :]
    is_kept = tl.zeros([TOKENS, GROUPS], tl.int32)
    for _ in tl.static_range(BEST):
        is_next = group == _best(left, group, GROUPS)
        is_kept = tl.where(is_next, 1, is_kept)
        left = tl.where(is_next, float("-inf"), left)
    kept = tl.reshape(is_kept, [TOKENS * GROUPS, 1])
    by_group = tl.where(kept > 0, by_group, float("-inf"))
    return tl.reshape(by_group, [TOKENS, EXPERTS])


@triton.jit
def _upper_half(wide):
    """Return float32 numbers without their lower 16 bits, in bfloat16 and in float32.

    Integer instructions do it. A rounding conversion runs at a quarter of their rate.
    """
    bits = wide.to(tl.int32, bitcast=True)
    narrow = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return narrow, (bits & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _dot_in_parts(wide, rows, acc):
    """Return ``acc`` and the product of float32 ``wide`` and bfloat16 ``rows``.

    Three bfloat16 numbers hold a float32 number's 24 bits. Their products are exact in float32, and
    the tensor cores sum them. Float32 products would take the cores' place.
    """
    high, taken = _upper_half(wide)
    wide -= taken
    middle, taken = _upper_half(wide)
    low, taken = _upper_half(wide - taken)
    acc = tl.dot(low, rows, acc)
    acc = tl.dot(middle, rows, acc)
    return tl.dot(high, rows, acc)


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _route_kernel(
    x,
    weight,
    bias,
    partial,
    arrived,
    weights,
    chosen,
    num_tokens,
    num_inputs,
    least_sum,
    added_to_sum,
    scaling,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUPS: tl.constexpr,
    BEST_GROUPS: tl.constexpr,
    IS_SIGMOID: tl.constexpr,
    ROUNDS_LOGITS: tl.constexpr,
    RENORMALISES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_WIDE: tl.constexpr,
    IN_PARTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHOSEN_T: tl.constexpr,
    SPLITS: tl.constexpr,
    LINE: tl.constexpr,
    LINES_ASKED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = t < num_tokens
    is_expert = e < NUM_EXPERTS
    share = tl.cdiv(tl.cdiv(num_inputs, BLOCK_K), SPLITS) * BLOCK_K
    low = split * share
    high = tl.minimum(low + share, num_inputs)
    from_weight = weight + tl.where(is_expert, e, 0)[:, None] * num_inputs
    if EARLY:
        if LINES_ASKED > 0:
            line = tl.minimum(low + tl.arange(0, LINES_ASKED) * LINE, num_inputs - 1)
            ask_into_l2(from_weight + line[None, :])
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([BLOCK_E, BLOCK_T], tl.float32)
    for k0 in range(low, high, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        inside = k < high
        w = tl.load(from_weight + k[None, :], mask=is_expert[:, None] & inside[None, :], other=0.0)
        rows = tl.load(
            x + t.to(tl.int64)[None, :] * num_inputs + k[:, None],
            mask=is_token[None, :] & inside[:, None],
            other=0.0,
        )
        if IN_PARTS:
            acc = _dot_in_parts(w, rows, acc)
        else:
            if IS_WIDE:
                w, rows = w.to(tl.float32), rows.to(tl.float32)
            acc = tl.dot(w, rows, acc, input_precision="ieee")
    to_partial = partial + (split * num_tokens + t[None, :]) * NUM_EXPERTS + e[:, None]
    tl.store(to_partial, acc, mask=is_expert[:, None] & is_token[None, :])
    # All of this program's stores before its arrival is counted.
    tl.debug_barrier()
    expected = tl.num_programs(0) * SPLITS
    if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == expected - 1:
        tl.store(arrived + tile, 0)
        number = tl.arange(0, EXPERTS)[None, :]
        slot = tl.arange(0, SLOTS)[None, :]
        is_real = number < NUM_EXPERTS
        for first in range(0, tl.minimum(BLOCK_T, num_tokens - tile * BLOCK_T), CHOSEN_T):
            token = tile * BLOCK_T + first + tl.arange(0, CHOSEN_T)[:, None]
            keep = (token < num_tokens) & is_real
            logits = tl.zeros([CHOSEN_T, EXPERTS], tl.float32)
            for s in tl.static_range(SPLITS):
                logits += tl.load(
                    partial + (s * num_tokens + token) * NUM_EXPERTS + number,
                    mask=keep,
                    other=0.0,
                    cache_modifier=".cg",
                )
            if ROUNDS_LOGITS:
                logits = logits.to(x.dtype.element_ty).to(tl.float32)
            if IS_SIGMOID:
                scores = 1.0 / (1.0 + tl.exp(-logits))
            else:
                logits = tl.where(is_real, logits, float("-inf"))
                powers = tl.exp(logits - tl.max(logits, 1, keep_dims=True))
                scores = powers / tl.sum(powers, 1, keep_dims=True)
            choice = scores
            if HAS_BIAS:
                choice += tl.load(bias + number, mask=is_real, other=0.0).to(tl.float32)
            choice = tl.where(is_real, choice, float("-inf"))
            if GROUPS > 1:
                choice = _without_worse_groups(choice, CHOSEN_T, EXPERTS, GROUPS, BEST_GROUPS)
            best = tl.zeros([CHOSEN_T, SLOTS], tl.int32)
            of_best = tl.zeros([CHOSEN_T, SLOTS], tl.float32)
            total = tl.zeros([CHOSEN_T, 1], tl.float32)
            for s in tl.static_range(TOP_K):
                expert = _best(choice, number, EXPERTS)
                is_its = number == expert
                if HAS_BIAS:
                    score = tl.sum(tl.where(is_its, scores, 0.0), 1, keep_dims=True)
                else:
                    score = tl.max(choice, 1, keep_dims=True)
                best = tl.where(slot == s, expert, best)
                of_best = tl.where(slot == s, score, of_best)
                total += score
                choice = tl.where(is_its, float("-inf"), choice)
            if RENORMALISES:
                of_best = of_best / (tl.maximum(total, least_sum) + added_to_sum)
            of_best = of_best * scaling
            place = token * TOP_K + slot
            keep = (token < num_tokens) & (slot < TOP_K)
            tl.store(chosen + place, best.to(tl.int64), mask=keep)
            tl.store(weights + place, of_best.to(weights.dtype.element_ty), mask=keep)


class RouteTiling(NamedTuple):
    """A ``RouteTiling`` says how the programs of one call divide its logits."""

    tokens: int
    experts: int
    columns: int
    splits: int
    warps: int
    stages: int


def route_tiling(num_experts: int) -> RouteTiling:
    """Choose the tiling of a call, by scripts/trials/bench_route.py.

    It is the same for any number of tokens, so that the bits of a token's logits depend on no other
    token. Many experts are ranked by more warps, because a warp takes the whole row of a token.
    """
    return RouteTiling(16, 64, 128, 8, 4 if num_experts <= 64 else 8, 3)


def can_route(weight: Tensor, rule: RouterRule) -> bool:
    """Return whether ``route`` takes this rule and its ``weight [E, H]``.

    With groups, it takes powers of two of groups and experts alone, so that a tile divides into
    groups.
    """
    num_experts = weight.shape[0]
    is_power = num_experts & (num_experts - 1) == 0 and rule.num_groups & (rule.num_groups - 1) == 0
    return rule.num_groups == 1 or is_power


def route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rule: RouterRule,
    tiling: RouteTiling | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``router_rule.route_by_torch`` in one kernel.

    If ``tiling`` is None, ``route_tiling`` chooses it.
    """
    x = x.contiguous()
    num_tokens, num_inputs = x.shape
    num_experts = weight.shape[0]
    is_wide = weight.dtype != x.dtype or x.dtype == torch.float32
    tiling = tiling or route_tiling(num_experts)
    tiles = triton.cdiv(num_tokens, tiling.tokens)
    assert tiles <= MAX_TILES and weight.is_contiguous() and can_route(weight, rule)
    in_parts = weight.dtype == torch.float32 and x.dtype == torch.bfloat16
    kind = torch.float32 if rule.wide_weights else x.dtype
    weights = torch.empty(num_tokens, rule.top_k, dtype=kind, device=x.device)
    chosen = torch.empty(num_tokens, rule.top_k, dtype=torch.long, device=x.device)
    shape = tiling.splits, num_tokens, num_experts
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)
    line = LINE_BYTES // weight.element_size()
    lines = min(MOST_LINES, triton.next_power_of_2(triton.cdiv(num_inputs, tiling.splits * line)))
    _route_kernel[(triton.cdiv(num_experts, tiling.experts), tiles, tiling.splits)](
        x,
        weight,
        bias,
        partial,
        arrivals("route", MAX_TILES, x.device),
        weights,
        chosen,
        num_tokens,
        num_inputs,
        rule.least_sum,
        rule.added_to_sum,
        rule.scaling,
        NUM_EXPERTS=num_experts,
        EXPERTS=triton.next_power_of_2(num_experts),
        TOP_K=rule.top_k,
        SLOTS=triton.next_power_of_2(rule.top_k),
        GROUPS=rule.num_groups,
        BEST_GROUPS=rule.top_groups,
        IS_SIGMOID=rule.is_sigmoid,
        ROUNDS_LOGITS=not rule.wide_logits and x.dtype != torch.float32,
        RENORMALISES=rule.renormalises,
        HAS_BIAS=bias is not None,
        IS_WIDE=is_wide,
        IN_PARTS=in_parts,
        BLOCK_E=tiling.experts,
        BLOCK_T=tiling.tokens,
        BLOCK_K=tiling.columns,
        CHOSEN_T=min(tiling.tokens, triton.next_power_of_2(num_tokens)),
        SPLITS=tiling.splits,
        LINE=line,
        LINES_ASKED=lines,
        EARLY=early(x.device),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **launch_keywords(x.device),
    )
    return weights, chosen
