"""Multiply few tokens by their experts, in Triton: each chosen expert's weights are read once.

Weights are the tall side of the tensor cores' product and tokens the narrow one, as in
``triton_linear``. Two forms share the kernels. If few experts are chosen twice, a program takes one
chosen pair of token and expert, and nothing is sorted. If many are, a small kernel first lists each
expert's pairs, and a program takes one expert. Grids depend on sizes alone, so routing may change
between the replays of a graph.

A shared expert runs in the same launches, by further programs (``triton_shared``).

A token's sums run over K and over its slots in one order, whatever other tokens choose.

With W8A8 a kernel ahead of each product quantises its rows (``fp8.token_values``), and the tensor
cores multiply FP8 numbers.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.counters import arrivals
from cgbench.kernels.fp8.block_scales import column_block
from cgbench.kernels.fp8.triton_tokens import product_of_codes, quantised_tokens
from cgbench.kernels.fp8.triton_values import exact_values
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.moe.expert_products import Choice, Experts, ExpertScales
from cgbench.kernels.moe.triton_shared import (
    SHARED_NUMBERS,
    SharedCall,
    is_padded,
    most_tokens_with,
    place_of,
    shared_by_products,
    shared_call,
    shared_product,
    store_weight,
    sum_of_pieces,
)
from cgbench.kernels.triton_gate import gated_product

PAIRS_A_STEP, PAIRS_A_WARP = 1024, 256
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


@triton.jit  # type: ignore[untyped-decorator]
def _chosen_by(
    pair,
    is_pair,
    chosen,
    slots,
    scratch_slot,
    query_len,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    """Return the expert of each ``pair``, or ``NUM_EXPERTS`` if its token is padding."""
    number = tl.load(chosen + pair, mask=is_pair, other=NUM_EXPERTS).to(tl.int32)
    if HAS_PADDING:
        slot = tl.load(slots + pair // TOP_K // query_len, mask=is_pair, other=0)
        number = tl.where(slot == scratch_slot, NUM_EXPERTS, number)
    return number


@triton.jit(do_not_specialize=["num_pairs", "num_tokens", "scratch_slot", "query_len"])  # type: ignore[untyped-decorator]
def _list_kernel(
    chosen,
    slots,
    scratch_slot,
    query_len,
    lists,
    counts,
    num_pairs,
    num_tokens,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """List each expert's pairs, in ascending order."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    expert = tl.program_id(0)
    count = 0
    for first in range(0, num_pairs, BLOCK):
        pair = first + tl.arange(0, BLOCK)
        number = _chosen_by(
            pair,
            pair < num_pairs,
            chosen,
            slots,
            scratch_slot,
            query_len,
            TOP_K,
            NUM_EXPERTS,
            HAS_PADDING,
        )
        is_its = number == expert
        place = count + tl.cumsum(is_its.to(tl.int32), 0) - 1
        tl.store(lists + expert * num_tokens + place, pair, mask=is_its)
        count += tl.sum(is_its.to(tl.int32), 0)
    tl.store(counts + expert, count)


@triton.jit  # type: ignore[untyped-decorator]
def part_of_weights(weight, n, num_rows, k, num_columns, stride, IS_EVEN: tl.constexpr):
    """Load a tile of weights, ``[N, K]``: rows ``n`` of ``num_rows``, columns ``k``.

    Rows are ``stride`` apart.
    """
    places = weight + n.to(tl.int64)[:, None] * stride + k[None, :]
    if IS_EVEN:
        return tl.load(places, eviction_policy="evict_first")
    inside = (n < num_rows)[:, None] & (k < num_columns)[None, :]
    return tl.load(places, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit  # type: ignore[untyped-decorator]
def of_either(is_shared, one, other, HAS_SHARED: tl.constexpr):
    """Return ``one`` for a shared expert's program, and ``other`` for another."""
    if HAS_SHARED:
        return tl.where(is_shared, one, other)
    else:
        return other


@triton.jit  # type: ignore[untyped-decorator]
def part_of_product(
    w,
    rows,
    acc,
    worth,
    row_worth,
    COLUMNS_A_SCALE: tl.constexpr,
    IS_W8A8: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BY_PARTS: tl.constexpr,
):
    """Return ``acc`` plus the product of a tile.

    A scale of FP8 weights multiplies the float32 sum of its own columns, so no value is rounded.
    So does the scale of a quantised row.
    """
    if IS_W8A8:
        of_tile = product_of_codes(w, rows, BLOCK_K, PRECISION == "ieee")
        acc += of_tile * worth[:, None] * row_worth[None, :]
    elif COLUMNS_A_SCALE > 0:
        values = exact_values(w, rows.dtype, BY_PARTS)
        acc += tl.dot(values, rows, input_precision=PRECISION) * worth[:, None]
    else:
        acc = tl.dot(w, rows, acc, input_precision=PRECISION)
    return acc


@triton.jit  # type: ignore[untyped-decorator]
def scales_of_columns(worths, k0, num_columns, COLUMNS_A_SCALE: tl.constexpr):
    """Return the scales of the columns from ``k0``, or of the last ones past the end.

    They are asked for a step before they are used, because no stage of the loop holds them.
    """
    if COLUMNS_A_SCALE > 0:
        worth = tl.load(worths + tl.minimum(k0, num_columns - 1) // COLUMNS_A_SCALE)
    else:
        worth = 0.0
    return worth


@triton.jit  # type: ignore[untyped-decorator]
def scales_of_tokens(
    from_scale, is_pair, k0, num_columns, COLUMNS_A_SCALE: tl.constexpr, IS_W8A8: tl.constexpr
):
    """Return the scales of quantised rows in the columns from ``k0``, as ``scales_of_columns``."""
    if IS_W8A8:
        block = tl.minimum(k0, num_columns - 1) // COLUMNS_A_SCALE
        row_worth = tl.load(from_scale + block, mask=is_pair, other=0.0)
    else:
        row_worth = 0.0
    return row_worth


@triton.jit(do_not_specialize=["num_tokens", "scratch_slot", "query_len", *SHARED_NUMBERS])  # type: ignore[untyped-decorator]
def _gate_up_kernel(
    x,
    row_scale,
    tokens,
    gate_up,
    scale,
    row_blocks,
    chosen,
    slots,
    scratch_slot,
    query_len,
    lists,
    counts,
    shared_gate_up,
    shared_scale,
    shared_row_blocks,
    shared_columns,
    num_shared,
    token_blocks,
    shared_gate,
    shared_weights,
    activated,
    num_tokens,
    num_inputs,
    num_columns,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    HAS_LISTS: tl.constexpr,
    PIECES: tl.constexpr,
    HAS_GATE: tl.constexpr,
    IS_EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    COLUMNS_A_SCALE: tl.constexpr,
    IS_W8A8: tl.constexpr,
    SHARED_SCALE_COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    COLUMNS: tl.constexpr = BLOCK_N // 2
    HAS_SHARED: tl.constexpr = PIECES > 0
    tile, group = tl.program_id(0), tl.program_id(1)
    is_shared, piece, block = False, 0, 0
    if HAS_SHARED:
        is_shared, tile, piece, block, group = place_of(num_shared, token_blocks)
    i = tl.arange(0, BLOCK_N)
    # Half a tile is of gate's rows, and half of up's, which lie further.
    column = tile * COLUMNS + i % COLUMNS
    is_row = column < num_columns
    apart = of_either(is_shared, shared_columns, num_columns, HAS_SHARED)
    n = tl.where(is_row, column, 0) + i // COLUMNS * apart
    c = tile * COLUMNS + tl.arange(0, COLUMNS)
    m = tl.arange(0, BLOCK_M)
    if HAS_SHARED:
        of_piece = shared_gate_up + (piece * num_columns).to(tl.int64) * num_inputs
    if EARLY:
        gdc_wait()
    num_groups = NUM_EXPERTS if HAS_LISTS else num_tokens * TOP_K
    is_routed = True
    if HAS_SHARED:
        is_routed = (group >= 0) & (group < num_groups)
    if HAS_LISTS:
        expert = group
        count = tl.load(counts + expert, mask=is_routed, other=0)
    else:
        expert = _chosen_by(
            group,
            is_routed,
            chosen,
            slots,
            scratch_slot,
            query_len,
            TOP_K,
            NUM_EXPERTS,
            HAS_PADDING,
        )
        count = tl.where(expert < NUM_EXPERTS, 1, 0)
    weight = gate_up + expert.to(tl.int64) * 2 * num_columns * num_inputs
    begin, end = 0, count
    if HAS_SHARED:
        weight = tl.where(is_shared, of_piece, weight)
        token = block * BLOCK_M + m
        is_live = is_shared & (token < num_tokens)
        is_live &= ~is_padded(token, slots, scratch_slot, query_len, is_live, HAS_PADDING)
        begin = tl.where(is_shared, block * BLOCK_M, 0)
        end = tl.where(is_shared, begin + tl.max(is_live.to(tl.int32), 0), count)
    worths = scale
    if COLUMNS_A_SCALE > 0:
        its = scale + expert.to(tl.int64) * (SCALE_ROWS * SCALE_COLUMNS)
        if HAS_SHARED:
            its = tl.where(is_shared, shared_scale, its)
            row_blocks = tl.where(is_shared, shared_row_blocks + piece * num_columns, row_blocks)
        columns = of_either(is_shared, SHARED_SCALE_COLUMNS, SCALE_COLUMNS, HAS_SHARED)
        worths = its + tl.load(row_blocks + n) * columns
    for first in range(begin, end, BLOCK_M):
        is_pair = first + m < end
        if HAS_LISTS:
            is_listed = is_pair & is_routed
            pair = tl.load(lists + expert * num_tokens + first + m, mask=is_listed, other=0)
        else:
            pair = group + m
        row = (pair // TOP_K).to(tl.int64)
        if HAS_SHARED:
            is_pair = tl.where(is_shared, is_live, is_pair)
            its_pair = num_tokens * TOP_K + piece * num_tokens + token
            pair = tl.where(is_shared, its_pair, pair)
            row = tl.where(is_shared, token.to(tl.int64), row)
        from_scale = row_scale
        if IS_W8A8:
            from_scale = row_scale + row * SCALE_COLUMNS
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        worth = scales_of_columns(worths, 0, num_inputs, COLUMNS_A_SCALE)
        row_worth = scales_of_tokens(from_scale, is_pair, 0, num_inputs, COLUMNS_A_SCALE, IS_W8A8)
        for k0 in range(0, num_inputs, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            w = part_of_weights(weight, n, 2 * apart, k, num_inputs, num_inputs, IS_EVEN)
            inside = is_pair[None, :] & (k < num_inputs)[:, None]
            rows = tl.load(x + row[None, :] * num_inputs + k[:, None], mask=inside, other=0.0)
            k1 = k0 + BLOCK_K
            following = scales_of_columns(worths, k1, num_inputs, COLUMNS_A_SCALE)
            row_following = scales_of_tokens(
                from_scale, is_pair, k1, num_inputs, COLUMNS_A_SCALE, IS_W8A8
            )
            acc = part_of_product(
                w,
                rows,
                acc,
                worth,
                row_worth,
                COLUMNS_A_SCALE,
                IS_W8A8,
                BLOCK_K,
                PRECISION,
                EARLY,
            )
            worth, row_worth = following, row_following
        # Rounded where torch's operations round.
        product = tl.reshape(acc.to(activated.dtype.element_ty), [2, COLUMNS, BLOCK_M])
        gate, up = tl.split(tl.permute(product, (1, 2, 0)))
        to = activated + pair.to(tl.int64)[None, :] * num_columns + c[:, None]
        keep = is_pair[None, :] & (c < num_columns)[:, None]
        tl.store(to, gated_product(gate, up), mask=keep)
    if HAS_GATE:
        # The last groups' programs have a token each.
        token_of_gate = (group - num_groups) * tl.num_programs(0) + tl.program_id(0)
        if (group >= num_groups) & (token_of_gate < num_tokens):
            store_weight(tokens, shared_gate, shared_weights, token_of_gate, num_inputs)
    if EARLY:
        gdc_launch_dependents()


@triton.jit(do_not_specialize=["num_tokens", "scratch_slot", "query_len", *SHARED_NUMBERS])  # type: ignore[untyped-decorator]
def _down_kernel(
    activated,
    row_scale,
    down,
    scale,
    row_blocks,
    chosen,
    slots,
    scratch_slot,
    query_len,
    lists,
    counts,
    shared_down,
    shared_scale,
    shared_row_blocks,
    shared_columns,
    num_shared,
    token_blocks,
    shared_weights,
    weights,
    residual,
    parts,
    arrived,
    out,
    num_tokens,
    num_inputs,
    num_outputs,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    HAS_LISTS: tl.constexpr,
    PIECES: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    COLUMNS_A_SCALE: tl.constexpr,
    IS_W8A8: tl.constexpr,
    SHARED_SCALE_COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Multiply a tile of outputs of one pair, or of one expert for its pairs.

    With lists, ``_sum_kernel`` makes the sum over a token's slots. Without them, the program that
    brings a token's last part makes it.
    """
    HAS_SHARED: tl.constexpr = PIECES > 0
    tile, group = tl.program_id(0), tl.program_id(1)
    is_shared, piece, block = False, 0, 0
    if HAS_SHARED:
        is_shared, tile, piece, block, group = place_of(num_shared, token_blocks)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    is_output = n < num_outputs
    stride = of_either(is_shared, shared_columns, num_inputs, HAS_SHARED)
    if HAS_SHARED:
        of_piece = shared_down + piece * num_inputs
    if EARLY:
        gdc_wait()
    is_routed = True
    if HAS_SHARED:
        is_routed = group >= 0
    if HAS_LISTS:
        expert = group
        count = tl.load(counts + expert, mask=is_routed, other=0)
    else:
        expert = _chosen_by(
            group,
            is_routed,
            chosen,
            slots,
            scratch_slot,
            query_len,
            TOP_K,
            NUM_EXPERTS,
            HAS_PADDING,
        )
        count = tl.where(expert < NUM_EXPERTS, 1, 0)
    weight = down + expert.to(tl.int64) * num_outputs * num_inputs
    begin, end = 0, count
    if HAS_SHARED:
        weight = tl.where(is_shared, of_piece, weight)
        token = block * BLOCK_M + m
        is_live = is_shared & (token < num_tokens)
        is_live &= ~is_padded(token, slots, scratch_slot, query_len, is_live, HAS_PADDING)
        begin = tl.where(is_shared, block * BLOCK_M, 0)
        end = tl.where(is_shared, begin + tl.max(is_live.to(tl.int32), 0), count)
    worths = scale
    if COLUMNS_A_SCALE > 0:
        its = scale + expert.to(tl.int64) * (SCALE_ROWS * SCALE_COLUMNS)
        if HAS_SHARED:
            its = tl.where(is_shared, shared_scale + piece * num_inputs // COLUMNS_A_SCALE, its)
            row_blocks = tl.where(is_shared, shared_row_blocks, row_blocks)
        columns = of_either(is_shared, SHARED_SCALE_COLUMNS, SCALE_COLUMNS, HAS_SHARED)
        worths = its + tl.load(row_blocks + n, mask=is_output, other=0) * columns
    for first in range(begin, end, BLOCK_M):
        is_pair = first + m < end
        if HAS_LISTS:
            is_listed = is_pair & is_routed
            pair = tl.load(lists + expert * num_tokens + first + m, mask=is_listed, other=0)
        else:
            pair = group + m
        if HAS_SHARED:
            is_pair = tl.where(is_shared, is_live, is_pair)
            pair = tl.where(is_shared, num_tokens * TOP_K + piece * num_tokens + token, pair)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        row = pair.to(tl.int64) * num_inputs
        from_scale = row_scale
        if IS_W8A8:
            from_scale = row_scale + pair.to(tl.int64) * SCALE_COLUMNS
        worth = scales_of_columns(worths, 0, num_inputs, COLUMNS_A_SCALE)
        row_worth = scales_of_tokens(from_scale, is_pair, 0, num_inputs, COLUMNS_A_SCALE, IS_W8A8)
        for k0 in range(0, num_inputs, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            w = part_of_weights(weight, n, num_outputs, k, num_inputs, stride, IS_EVEN)
            inside = is_pair[None, :] & (k < num_inputs)[:, None]
            rows = tl.load(activated + row[None, :] + k[:, None], mask=inside, other=0.0)
            k1 = k0 + BLOCK_K
            following = scales_of_columns(worths, k1, num_inputs, COLUMNS_A_SCALE)
            row_following = scales_of_tokens(
                from_scale, is_pair, k1, num_inputs, COLUMNS_A_SCALE, IS_W8A8
            )
            acc = part_of_product(
                w,
                rows,
                acc,
                worth,
                row_worth,
                COLUMNS_A_SCALE,
                IS_W8A8,
                BLOCK_K,
                PRECISION,
                EARLY,
            )
            worth, row_worth = following, row_following
        to_part = parts + pair.to(tl.int64)[None, :] * num_outputs + n[:, None]
        keep = is_pair[None, :] & is_output[:, None]
        tl.store(to_part, acc.to(parts.dtype.element_ty), mask=keep)
    if EARLY:
        gdc_launch_dependents()
    if not HAS_LISTS:
        # All of this program's stores before its arrival is counted.
        tl.debug_barrier()
        low, past = group // TOP_K, group // TOP_K + 1
        counter = arrived + low * tl.num_programs(0) + tile
        if HAS_SHARED:
            low = tl.where(is_shared, begin, low)
            past = tl.where(is_shared, tl.minimum(begin + BLOCK_M, num_tokens), past)
            counter = arrived + low * tl.num_programs(0) + tile
            is_its = low + m < past
            before = tl.atomic_add(counter + m * tl.num_programs(0), 1, mask=is_its, sem="acq_rel")
            is_last = (is_its & (before == TOP_K + PIECES - 1)).to(tl.int32)
            # Every thread reads parts after all counts are there.
            tl.debug_barrier()
            for i in range(past - low):
                whole = low + i
                if tl.sum(tl.where(m == i, is_last, 0), 0) > 0:
                    sum_of_slots(
                        parts,
                        chosen,
                        slots,
                        scratch_slot,
                        query_len,
                        weights,
                        shared_weights,
                        residual,
                        out,
                        whole,
                        num_tokens,
                        n,
                        num_outputs,
                        TOP_K,
                        NUM_EXPERTS,
                        HAS_PADDING,
                        PIECES,
                        HAS_GATE,
                        HAS_RESIDUAL,
                    )
                    tl.store(arrived + whole * tl.num_programs(0) + tile, 0)
        elif tl.atomic_add(counter, 1, sem="acq_rel") == TOP_K - 1:
            sum_of_slots(
                parts,
                chosen,
                slots,
                scratch_slot,
                query_len,
                weights,
                shared_weights,
                residual,
                out,
                low,
                num_tokens,
                n,
                num_outputs,
                TOP_K,
                NUM_EXPERTS,
                HAS_PADDING,
                PIECES,
                HAS_GATE,
                HAS_RESIDUAL,
            )
            tl.store(counter, 0)


@triton.jit  # type: ignore[untyped-decorator]
def sum_of_slots(
    parts,
    chosen,
    slots,
    scratch_slot,
    query_len,
    weights,
    shared_weights,
    residual,
    out,
    token,
    num_tokens,
    n,
    num_outputs,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    PIECES: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Sum a token's outputs ``n`` from its parts, in the order of the slots.

    A shared expert's come last.
    """
    first = token.to(tl.int64) * TOP_K
    is_output = n < num_outputs
    total = tl.zeros(n.shape, tl.float32)
    for slot in tl.static_range(TOP_K):
        pair = token * TOP_K + slot
        expert = _chosen_by(
            pair, True, chosen, slots, scratch_slot, query_len, TOP_K, NUM_EXPERTS, HAS_PADDING
        )
        is_live = expert < NUM_EXPERTS
        part = tl.load(
            parts + (first + slot) * num_outputs + n,
            mask=is_output & is_live,
            other=0.0,
            cache_modifier=".cg",
        )
        total += tl.load(weights + first + slot).to(tl.float32) * part.to(tl.float32)
    if PIECES > 0:
        is_summed = is_output & ~is_padded(token, slots, scratch_slot, query_len, True, HAS_PADDING)
        behind = num_tokens * TOP_K
        total += sum_of_pieces(
            parts,
            shared_weights,
            token,
            behind,
            num_tokens,
            n,
            num_outputs,
            is_summed,
            PIECES,
            HAS_GATE,
        )
    place = token.to(tl.int64) * num_outputs + n
    if HAS_RESIDUAL:
        total += tl.load(residual + place, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=is_output)


@triton.jit(do_not_specialize=["num_tokens", "scratch_slot", "query_len"])  # type: ignore[untyped-decorator]
def _sum_kernel(
    parts,
    chosen,
    slots,
    scratch_slot,
    query_len,
    weights,
    shared_weights,
    residual,
    out,
    num_tokens,
    num_outputs,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    PIECES: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sum_of_slots(
        parts,
        chosen,
        slots,
        scratch_slot,
        query_len,
        weights,
        shared_weights,
        residual,
        out,
        tl.program_id(0),
        num_tokens,
        n,
        num_outputs,
        TOP_K,
        NUM_EXPERTS,
        HAS_PADDING,
        PIECES,
        HAS_GATE,
        HAS_RESIDUAL,
    )


class Plan(NamedTuple):
    """A plan is how the experts of one call are applied.

    It has lists or none, and a tiling for each of the two products. A shared expert runs in the
    launches or not.
    """

    has_lists: bool
    gate_up: Tiling
    down: Tiling
    takes_shared: bool = True


EXPERTS_A_PAIR = 8
"""If there are at least this many experts for each pair, none is listed."""


def plan_of(experts: Experts, num_tokens: int, top_k: int) -> Plan:
    """Return the best plan, or nearly the best, of those tried on an H200.

    Source: results/h200/experts.md.
    """
    is_scaled = experts.gate_up_scales is not None
    plan = (_scaled_plan_of if is_scaled else _plain_plan_of)(experts, num_tokens, top_k)
    return plan._replace(takes_shared=num_tokens <= most_tokens_with(experts))


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
    plan = _fitted(plan, experts)
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


def _fitted(plan: Plan, experts: Experts) -> Plan:
    """Return ``plan`` for FP8 weights, with tiles of one scale's columns."""
    gate_up = _columns_a_scale(experts.gate_up, experts.gate_up_scales)
    down = _columns_a_scale(experts.down, experts.down_scales)
    return plan._replace(gate_up=_narrowed(plan.gate_up, gate_up), down=_narrowed(plan.down, down))


def _narrowed(tiling: Tiling, columns: int | None) -> Tiling:
    return tiling if columns is None else tiling._replace(block_k=min(tiling.block_k, columns))


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
        """Return the arguments of ``_chosen_by``."""
        chosen, padding = self.choice.chosen, self.choice.padding
        if padding is None:
            return chosen, chosen, -1, 1
        return chosen, padding.slots, padding.scratch_slot, padding.query_len

    @property
    def groups(self) -> int:
        """Return the programs a tile of weights: one an expert, or one a pair."""
        return self.experts.num_experts if self.plan.has_lists else self.choice.num_pairs

    @property
    def constants(self) -> dict[str, Any]:
        """Return the keywords of every kernel."""
        return {
            "TOP_K": self.choice.chosen.shape[1],
            "NUM_EXPERTS": self.experts.num_experts,
            "HAS_PADDING": self.choice.padding is not None,
            "EARLY": self.is_early,
            **launch_keywords(self.choice.chosen.device),
        }

    @property
    def of_sum(self) -> dict[str, Any]:
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
    ) -> dict[str, Any]:
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
    _list_kernel[(num_experts,)](
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
    _gate_up_kernel[(tiles, shared.num_groups + call.groups + gate_groups)](
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
        **call.of_sum,
        **shared.constants,
        **call.of_product(tiling, weight, scales, x.dtype, is_even=is_even),
    )
    return activated


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
    _down_kernel[(tiles, shared.num_groups + call.groups)](
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
        **call.of_sum,
        **shared.constants,
        **call.of_product(tiling, weight, scales, out.dtype, is_even=is_even),
    )


def _sum(call: _Call, parts: Tensor, residual: Tensor | None, out: Tensor) -> None:
    num_tokens, num_outputs = out.shape
    _sum_kernel[(num_tokens, triton.cdiv(num_outputs, COLUMNS_A_SUM))](
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


COLUMNS_A_SUM = 512
MAX_ARRIVALS = 1 << 17
