"""The kernels of a mixture's experts: lists of pairs, the two products, and the sum.

Weights are the tall side of the tensor cores' product and tokens the narrow one, as in
``triton_linear``. ``triton_experts`` launches them.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.moe.triton_expert_parts import (
    ask_for_first,
    chosen_by,
    expert_of_group,
    of_either,
    product_over_columns,
    sum_of_slots,
    tokens_of_block,
)
from cgbench.kernels.moe.triton_shared import SHARED_NUMBERS, place_of, store_weight
from cgbench.kernels.triton_gate import gated_product


@triton.jit(do_not_specialize=["num_pairs", "num_tokens", "scratch_slot", "query_len"])  # type: ignore[untyped-decorator]
def list_kernel(
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
        number = chosen_by(
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


@triton.jit(do_not_specialize=["num_tokens", "scratch_slot", "query_len", *SHARED_NUMBERS])  # type: ignore[untyped-decorator]
def gate_up_kernel(
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
    ASKS_EARLY: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Compute ``silu(gate) * up`` of a tile of one pair, or of one expert's pairs."""
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
        if ASKS_EARLY:
            gdc_launch_dependents()
    num_groups = NUM_EXPERTS if HAS_LISTS else num_tokens * TOP_K
    is_routed = True
    if HAS_SHARED:
        is_routed = (group >= 0) & (group < num_groups)
    expert, count = expert_of_group(
        group,
        is_routed,
        counts,
        chosen,
        slots,
        scratch_slot,
        query_len,
        TOP_K,
        NUM_EXPERTS,
        HAS_PADDING,
        HAS_LISTS,
    )
    weight = gate_up + expert.to(tl.int64) * 2 * num_columns * num_inputs
    begin, end = 0, count
    if HAS_SHARED:
        weight = tl.where(is_shared, of_piece, weight)
        token, is_live, begin, end = tokens_of_block(
            is_shared,
            block * BLOCK_M,
            m,
            count,
            num_tokens,
            slots,
            scratch_slot,
            query_len,
            HAS_PADDING,
        )
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
        acc = product_over_columns(
            x + row * num_inputs,
            from_scale,
            is_pair,
            weight,
            n,
            2 * apart,
            num_inputs,
            num_inputs,
            worths,
            IS_EVEN,
            BLOCK_N,
            BLOCK_M,
            BLOCK_K,
            COLUMNS_A_SCALE,
            IS_W8A8,
            PRECISION,
            EARLY,
        )
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
    if EARLY and not ASKS_EARLY:
        gdc_launch_dependents()


@triton.jit(do_not_specialize=["num_tokens", "scratch_slot", "query_len", *SHARED_NUMBERS])  # type: ignore[untyped-decorator]
def down_kernel(
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
    LINES_ASKED: tl.constexpr,
    FIRST_PROGRAMS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Multiply a tile of outputs of one pair, or of one expert for its pairs.

    With lists, ``sum_kernel`` makes the sum over a token's slots. Without them, the program that
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
    if EARLY and LINES_ASKED == 0:
        gdc_wait()
    is_routed = True
    if HAS_SHARED:
        is_routed = group >= 0
    expert, count = expert_of_group(
        group,
        is_routed,
        counts,
        chosen,
        slots,
        scratch_slot,
        query_len,
        TOP_K,
        NUM_EXPERTS,
        HAS_PADDING,
        HAS_LISTS,
    )
    weight = down + expert.to(tl.int64) * num_outputs * num_inputs
    begin, end = 0, count
    if HAS_SHARED:
        weight = tl.where(is_shared, of_piece, weight)
    if EARLY and LINES_ASKED > 0:
        # The router has ended, because gate and up have waited for it.
        has_any = (count > 0) | is_shared
        ask_for_first(
            weight, n, num_outputs, num_inputs, stride, has_any, FIRST_PROGRAMS, LINES_ASKED
        )
        gdc_wait()
    if HAS_SHARED:
        token, is_live, begin, end = tokens_of_block(
            is_shared,
            block * BLOCK_M,
            m,
            count,
            num_tokens,
            slots,
            scratch_slot,
            query_len,
            HAS_PADDING,
        )
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
        from_scale = row_scale
        if IS_W8A8:
            from_scale = row_scale + pair.to(tl.int64) * SCALE_COLUMNS
        acc = product_over_columns(
            activated + pair.to(tl.int64) * num_inputs,
            from_scale,
            is_pair,
            weight,
            n,
            num_outputs,
            stride,
            num_inputs,
            worths,
            IS_EVEN,
            BLOCK_N,
            BLOCK_M,
            BLOCK_K,
            COLUMNS_A_SCALE,
            IS_W8A8,
            PRECISION,
            EARLY,
        )
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


@triton.jit(do_not_specialize=["num_tokens", "scratch_slot", "query_len"])  # type: ignore[untyped-decorator]
def sum_kernel(
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
    """Sum the parts of one token."""
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
