"""Parts of the experts' kernels: a pair's expert, tiles and their scales, and a token's sum."""

import triton
import triton.language as tl

from cgbench.kernels.fp8.triton_tokens import product_of_codes
from cgbench.kernels.fp8.triton_values import exact_values
from cgbench.kernels.moe.triton_shared import is_padded, sum_of_pieces
from cgbench.kernels.triton_linear import ask_into_l2

LINE_BYTES = tl.constexpr(128)


@triton.jit  # type: ignore[untyped-decorator]
def chosen_by(
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
    """Return the expert of each ``pair``, or ``NUM_EXPERTS`` if its token is padding.

    It may be asked before the kernel ahead has ended, so it reads past L1: see ``kernels.gpu``.
    """
    number = tl.load(chosen + pair, mask=is_pair, other=NUM_EXPERTS, cache_modifier=".cg")
    number = number.to(tl.int32)
    if HAS_PADDING:
        place = slots + pair // TOP_K // query_len
        slot = tl.load(place, mask=is_pair, other=0, cache_modifier=".cg")
        number = tl.where(slot == scratch_slot, NUM_EXPERTS, number)
    return number


@triton.jit  # type: ignore[untyped-decorator]
def expert_of_group(
    group,
    is_routed,
    counts,
    chosen,
    slots,
    scratch_slot,
    query_len,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    HAS_LISTS: tl.constexpr,
):
    """Return the expert of a program's ``group``, and how many pairs it takes.

    With lists a group is an expert, else it is a pair. None is taken if it is not routed.
    """
    if HAS_LISTS:
        expert = group
        count = tl.load(counts + expert, mask=is_routed, other=0, cache_modifier=".cg")
    else:
        expert = chosen_by(
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
    return expert, count


@triton.jit  # type: ignore[untyped-decorator]
def tokens_of_block(
    is_shared,
    first,
    m,
    count,
    num_tokens,
    slots,
    scratch_slot,
    query_len,
    HAS_PADDING: tl.constexpr,
):
    """Return a shared expert's tokens from ``first``, which are no padding, and the span to walk.

    The span is empty if all are padding. Another program's is its ``count`` pairs.
    """
    token = first + m
    is_live = is_shared & (token < num_tokens)
    is_live &= ~is_padded(token, slots, scratch_slot, query_len, is_live, HAS_PADDING)
    begin = tl.where(is_shared, first, 0)
    end = tl.where(is_shared, begin + tl.max(is_live.to(tl.int32), 0), count)
    return token, is_live, begin, end


@triton.jit  # type: ignore[untyped-decorator]
def ask_for_first(
    weight,
    n,
    num_rows,
    num_columns,
    stride,
    has_any,
    FIRST_PROGRAMS: tl.constexpr,
    LINES: tl.constexpr,
):
    """Ask for the first ``LINES`` lines of each of the rows ``n`` into L2, if they are wanted.

    Programs that begin later than the first ones find the kernel ahead ended.
    """
    ITEMS: tl.constexpr = LINE_BYTES * 8 // weight.dtype.element_ty.primitive_bitwidth
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    if has_any & (program < FIRST_PROGRAMS):
        line = tl.minimum(tl.arange(0, LINES) * ITEMS, num_columns - 1)
        row = tl.minimum(n, num_rows - 1).to(tl.int64) * stride
        ask_into_l2(weight + row[:, None] + line[None, :])


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


@triton.jit  # type: ignore[untyped-decorator]
def product_over_columns(
    from_rows,
    from_scale,
    is_pair,
    weight,
    n,
    num_rows,
    stride,
    num_inputs,
    worths,
    IS_EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COLUMNS_A_SCALE: tl.constexpr,
    IS_W8A8: tl.constexpr,
    PRECISION: tl.constexpr,
    BY_PARTS: tl.constexpr,
):
    """Return the product ``[N, M]`` of rows ``n`` of a weight and the tokens' rows, in float32.

    ``from_rows [M]`` points at the tokens' rows, and ``from_scale`` at their scales if they are
    quantised. ``worths [N]`` points at the scales of the weight's rows.
    """
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    worth = scales_of_columns(worths, 0, num_inputs, COLUMNS_A_SCALE)
    row_worth = scales_of_tokens(from_scale, is_pair, 0, num_inputs, COLUMNS_A_SCALE, IS_W8A8)
    for k0 in range(0, num_inputs, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        w = part_of_weights(weight, n, num_rows, k, num_inputs, stride, IS_EVEN)
        inside = is_pair[None, :] & (k < num_inputs)[:, None]
        rows = tl.load(from_rows[None, :] + k[:, None], mask=inside, other=0.0)
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
            BY_PARTS,
        )
        worth, row_worth = following, row_following
    return acc


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
        expert = chosen_by(
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
