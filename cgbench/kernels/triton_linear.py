"""Compute linear layers of few rows, in Triton, bound by reading the weights once.

A verify step of one request multiplies k + 1 rows by every weight. cuBLAS leaves a quarter of the
read bandwidth there. Here each program streams a tile of the weights. The rows are the narrow side
of the tensor cores' product. K is split until the device has enough reads under way. The last
program of a tile to arrive adds the splits in their order, so the sum is the same every time.

FP8 weights (e4m3, with scales: see ``fp8.block_scales``) are streamed as they are stored. They
become the rows' type in registers, which is exact, and a scale multiplies the float32 sum of its
own columns. So nothing is rounded that a product of the weights' values would not round. Many
outputs of 17 to 64 rows are multiplied in float16, to which the rows are brought first (see
``fp8.triton_halves`` for what that rounds).

With W8A8 the rows are FP8 too, quantised by a kernel ahead (see ``fp8.token_values``). The tensor
cores multiply both as they are, and both scales multiply the sum of their columns. That takes any
number of rows, because more rows only take taller tiles.

A program waits for its rows only after it is set up and has asked for its first weights: see
``gpu``.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.counters import arrivals
from cgbench.kernels.fp8.block_scales import column_block
from cgbench.kernels.fp8.triton_halves import half_rows
from cgbench.kernels.fp8.triton_tokens import product_of_codes, quantised_tokens
from cgbench.kernels.fp8.triton_values import exact_values
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.triton_gate import gated_product
from cgbench.kernels.triton_rotary import Rotary, load_tables, turned

MAX_ROWS = 64
"""A product takes at most this many rows, because above it cuBLAS is no slower.

Source: results/h200/linear.md.
"""

MAX_SCALED_ROWS = 128
"""A product of FP8 weights takes at most this many rows.

Above it the library multiplies the weights' values, which are made first. Where it takes the rows
as pairs (``fp8.library_products``), it does so from 33 or 65 rows on. Source: results/h200/fp8.md.
"""

FEW_ROWS = 32
"""Up to this many rows a product is cut for its bytes alone."""
ROWS_A_TILE = 64
QUANTISED_ROWS_A_TILE = 128
ROWS_THAT_LEAVE_REGISTERS = tl.constexpr(64)
MAX_ELEMENTS = 1 << 31
"""Places in a tensor of quantised rows, or of their product, are counted in 31 bits."""
LEAST_ROWS_A_TILE = 16
# With 16 the tensor cores would multiply twice as much, and FP8 weights leave no time for that.
LEAST_SCALED_ROWS_A_TILE = 8
LEAST_COLUMN_BLOCK = 16
LEAST_HALF_TILES = 256
"""With as many tiles of outputs, rows in float16 are worth their own kernel."""

# More outputs than any vocabulary has, in the narrowest tiles.
MAX_TILES = 1 << 14
MAX_SPLITS = 8
# This is an H200's number. The tilings were found there, and depend on how much is under way at
# once.
MULTIPROCESSORS = 132
ALIGNMENT = 16
LEAST_WEIGHTS = 1 << 18


class Tiling(NamedTuple):
    """A tiling is how one product is cut up.

    A tile is ``block_n`` outputs by ``block_k`` inputs, for ``block_m`` rows at most, and K is cut
    in ``splits``. With ``in_float16`` bfloat16 rows are brought to float16 ahead, where FP8 weights
    are converted at less cost.
    """

    block_n: int
    block_k: int
    splits: int
    num_warps: int
    num_stages: int
    block_m: int = ROWS_A_TILE
    in_float16: bool = False


class Scales(NamedTuple):
    """Scales are the numbers that FP8 weights are multiplied by.

    ``scale [R, C]`` is in float32. ``row_blocks [N]`` is the row of ``scale`` that each row of
    weights reads. With ``is_w8a8`` the other operand is quantised too.
    """

    scale: Tensor
    row_blocks: Tensor
    is_w8a8: bool = False


LINE_BYTES = 128
ASKED_BYTES = 4 << 20
"""This many bytes of the weights are asked into L2 before the wait.

They arrive while a small kernel ahead ends.
"""


@triton.jit
def ask_into_l2(pointers):
    """Prefetch the lines at ``pointers`` into L2."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _linear_kernel(
    x,
    row_scale,
    weight,
    scale,
    row_blocks,
    bias,
    residual,
    cos,
    sin,
    out,
    partial,
    arrived,
    num_rows,
    num_outputs,
    num_inputs,
    num_rotated,
    apart,
    x_stride,
    num_scales,
    ROW_TILES: tl.constexpr,
    IS_SCALED: tl.constexpr,
    IS_W8A8: tl.constexpr,
    IN_FLOAT16: tl.constexpr,
    COLUMNS_A_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_ROTARY: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    LINE_BYTES: tl.constexpr,
    LINES_ASKED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    # Tiles of rows are next to each other, so that L2 has for one what another reads of the
    # weights.
    tile = tl.program_id(0) // ROW_TILES
    split = tl.program_id(1)
    m = tl.program_id(0) % ROW_TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    EVICTION: tl.constexpr = "evict_first" if ROW_TILES == 1 else ""
    # Gate and up, or a head's halves, are combined at the end. They lie ``apart`` columns apart. So
    # half a tile is of the ones, and half of the others.
    IN_PAIRS: tl.constexpr = IS_GATED or HAS_ROTARY
    COLUMNS: tl.constexpr = BLOCK_N // 2 if IN_PAIRS else BLOCK_N
    num_columns = num_outputs // 2 if IN_PAIRS else num_outputs
    i = tl.arange(0, BLOCK_N)
    n = tile * COLUMNS + i % COLUMNS
    is_output = n < num_columns
    if IN_PAIRS:
        n = n // apart * (2 * apart) + n % apart + i // COLUMNS * apart
    blocks = tl.cdiv(tl.cdiv(num_inputs, BLOCK_K), SPLITS)
    low = split * blocks * BLOCK_K
    high = tl.minimum(low + blocks * BLOCK_K, num_inputs)
    is_row = m < num_rows
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if IS_SCALED:
        block = tl.load(row_blocks + n, mask=is_output, other=0, cache_modifier=".cg")
        from_scale = scale + block * num_scales
    from_weight = weight + n.to(tl.int64)[:, None] * num_inputs
    to_partial = m[None, :] * num_outputs + n[:, None]
    keep = is_row[None, :] & is_output[:, None]
    if IN_PAIRS:
        c = tile * COLUMNS + tl.arange(0, COLUMNS)
        keep_pair = is_row[None, :] & (c < num_columns)[:, None]
    if EARLY:
        if LINES_ASKED > 0:
            ITEMS: tl.constexpr = LINE_BYTES * 8 // weight.dtype.element_ty.primitive_bitwidth
            line = low + tl.arange(0, LINES_ASKED) * ITEMS
            asked = tl.minimum(n, num_outputs - 1).to(tl.int64)[:, None] * num_inputs
            ask_into_l2(weight + asked + tl.minimum(line, num_inputs - 1)[None, :])
        gdc_wait()
        if IS_GATED:
            # The layer's last product comes next. One program of it fits on a multiprocessor, so it
            # can only spread, and it asks for its weights while the last tiles here are read.
            gdc_launch_dependents()
    if HAS_ROTARY:
        first = c // apart * (2 * apart) + c % apart
        tables = m[None, :] * (2 * apart) + (c % apart)[:, None]
    # The end's inputs are asked for at the start, unless a tile of so many rows needs the
    # registers.
    ASKS_AT_START: tl.constexpr = BLOCK_M <= ROWS_THAT_LEAVE_REGISTERS
    if HAS_RESIDUAL and ASKS_AT_START:
        added = tl.load(residual + to_partial, mask=keep, other=0.0)
    if HAS_ROTARY and ASKS_AT_START:
        cos_low, cos_high, sin_low, sin_high = load_tables(
            cos, sin, tables, apart, keep_pair & (first < num_rotated)[:, None]
        )
    if IS_SCALED:
        first_block = tl.minimum(low, num_inputs - 1) // COLUMNS_A_SCALE
        worth = tl.load(from_scale + first_block)
    if IS_W8A8:
        from_row_scale = row_scale + m * num_scales
        row_worth = tl.load(from_row_scale + first_block, mask=is_row, other=0.0)
    for k0 in range(low, high, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        if IS_EVEN:
            w = tl.load(from_weight + k[None, :], eviction_policy=EVICTION)
        else:
            w = tl.load(
                from_weight + k[None, :],
                mask=is_output[:, None] & (k < high)[None, :],
                other=0.0,
                eviction_policy=EVICTION,
            )
        rows = tl.load(
            x + m[None, :] * x_stride + k[:, None],
            mask=is_row[None, :] & (k < high)[:, None],
            other=0.0,
        )
        if IS_SCALED:
            # The next scale is asked for before this one is used, because no stage holds it.
            next_block = tl.minimum(k0 + BLOCK_K, high - 1) // COLUMNS_A_SCALE
            following = tl.load(from_scale + next_block)
            if IS_W8A8:
                row_following = tl.load(from_row_scale + next_block, mask=is_row, other=0.0)
                # A sum of one tile alone, so that float32 adds the tiles.
                of_tile = product_of_codes(w, rows, BLOCK_K, out.dtype.element_ty == tl.float32)
                acc += of_tile * worth[:, None] * row_worth[None, :]
                row_worth = row_following
            else:
                acc += tl.dot(exact_values(w, rows.dtype, BY_PARTS=EARLY), rows) * worth[:, None]
            worth = following
        else:
            acc = tl.dot(w, rows, acc)

    if EARLY and not IS_GATED:
        # It is not done before: see docs/engine.md.
        gdc_launch_dependents()
    is_last = True
    if SPLITS > 1:
        tl.store(partial + split * num_rows * num_outputs + to_partial, acc, mask=keep)
        # All of this program's stores before its arrival is counted.
        tl.debug_barrier()
        is_last = tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == SPLITS - 1
    if is_last:
        if SPLITS > 1:
            acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for s in range(SPLITS):
                acc += tl.load(
                    partial + s * num_rows * num_outputs + to_partial,
                    mask=keep,
                    other=0.0,
                    cache_modifier=".cg",
                )
            tl.store(arrived + tl.program_id(0), 0)
        if IN_FLOAT16:
            acc *= tl.load(row_scale + m, mask=is_row, other=0.0)[None, :]
        if HAS_BIAS:
            acc += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)[:, None]
        # Rounded where torch's operations round.
        product = acc.to(out.dtype.element_ty)
        if HAS_RESIDUAL and not ASKS_AT_START:
            added = tl.load(residual + to_partial, mask=keep, other=0.0)
        if HAS_ROTARY and not ASKS_AT_START:
            cos_low, cos_high, sin_low, sin_high = load_tables(
                cos, sin, tables, apart, keep_pair & (first < num_rotated)[:, None]
            )
        if IN_PAIRS:
            pairs = tl.reshape(product, [2, COLUMNS, BLOCK_M])
            one, other = tl.split(tl.permute(pairs, (1, 2, 0)))
            if IS_GATED:
                to_pair = out + m[None, :] * num_columns + c[:, None]
                tl.store(to_pair, gated_product(one, other), mask=keep_pair)
            else:
                one, other = turned(one, other, cos_low, cos_high, sin_low, sin_high)
                to_pair = out + m[None, :] * num_outputs + first[:, None]
                tl.store(to_pair, one, mask=keep_pair)
                tl.store(to_pair + apart, other, mask=keep_pair)
        else:
            if HAS_RESIDUAL:
                product = (product.to(tl.float32) + added.to(tl.float32)).to(out.dtype.element_ty)
            tl.store(out + to_partial, product, mask=keep)


def can_stream(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, *, is_w8a8: bool = False
) -> bool:
    """Return whether ``linear`` takes these tensors.

    It takes few aligned rows of half precision, with enough weights that reading them dominates.
    FP8 weights may be few and have more rows, because any other way reads far more. With
    ``is_w8a8`` it takes any rows of any type.
    """
    if scale is not None:
        is_aligned = (
            x.is_cuda
            and weight.is_contiguous()
            and weight.shape[1] % ALIGNMENT == 0
            and column_block(weight.shape[1], scale.shape[1]) >= LEAST_COLUMN_BLOCK
        )
        if is_w8a8:
            return is_aligned and x.numel() // x.shape[-1] * max(weight.shape) < MAX_ELEMENTS
        is_half = x.dtype in (torch.bfloat16, torch.float16)
        return is_aligned and is_half and x.numel() <= MAX_SCALED_ROWS * x.shape[-1]
    return (
        x.is_cuda
        and x.numel() <= MAX_ROWS * x.shape[-1]
        and weight.dtype in (torch.bfloat16, torch.float16)
        and weight.is_contiguous()
        and weight.shape[1] % ALIGNMENT == 0
        and weight.numel() >= LEAST_WEIGHTS
    )


def tiling_of(num_outputs: int, num_rows: int = 1) -> Tiling:
    """Return the best tiling, or nearly the best, of those tried on an H200.

    It was tried with 4 to 64 rows over the shapes of a 7B model. Up to two programs a
    multiprocessor go deep. If there are more, they leave room for one another and for the next
    kernel's. More than 32 rows take wider tiles if all of those run at once. Source:
    results/h200/linear.md.

    If there is no more than one a multiprocessor, it takes more than half of the shared memory (six
    stages). Otherwise two programs, launched while the kernel ahead still runs, would share the
    multiprocessors that are free first. The others would be idle.
    """
    tiles = triton.cdiv(num_outputs, 64)
    if tiles > 2 * MULTIPROCESSORS:
        is_one_wave = triton.cdiv(num_outputs, 128) <= 2 * MULTIPROCESSORS
        if num_rows > FEW_ROWS and is_one_wave:
            return Tiling(128, 64, 1, 4, 4)
        return Tiling(64, 128, 1, 4, 3)
    splits = _power_of_2_to(min(MAX_SPLITS, MULTIPROCESSORS // tiles))
    return Tiling(64, 128, splits, 4, 6 if tiles <= MULTIPROCESSORS else 5)


def _power_of_2_to(number: int) -> int:
    return 1 << (max(1, number).bit_length() - 1)


def scaled_tiling_of(num_rows: int, num_outputs: int) -> Tiling:
    """Return the best tiling of FP8 weights, or nearly the best, of those tried on an H200.

    Making values takes instructions, and a warp waits for each step of them. So many small programs
    share a multiprocessor. More rows take more of the tensor cores, which want four warps. Where
    the outputs alone make programs enough, more than 16 rows are brought to float16 first. Its
    values take a quarter of the instructions, and the rows' own kernel is short beside so many
    weights. Source: results/h200/fp8.md.
    """
    block_n, num_warps, num_stages, programs = 64, 2, 3, 384
    if num_rows <= LEAST_SCALED_ROWS_A_TILE:
        block_n, num_stages, programs = 32, 4, 512
    elif num_rows > FEW_ROWS:
        num_warps, programs = 4, 256
    tiles = triton.cdiv(num_outputs, block_n)
    if 2 * LEAST_SCALED_ROWS_A_TILE < num_rows <= ROWS_A_TILE and tiles >= LEAST_HALF_TILES:
        return Tiling(64, 128, 1, 4, 3 if num_rows > FEW_ROWS else 5, in_float16=True)
    tiles *= triton.cdiv(num_rows, ROWS_A_TILE)
    splits = min(MAX_SPLITS, triton.next_power_of_2(triton.cdiv(programs, tiles)))
    return Tiling(block_n, 128, splits, num_warps, num_stages)


def quantised_tiling_of(num_rows: int, num_outputs: int) -> Tiling:
    """Return a tiling of FP8 weights for quantised rows.

    Nothing is converted in registers. So a few rows are cut as plain weights are. A tile has half
    the bytes, so one stage more is under way. More rows are bound by arithmetic, and take a tile
    that two groups of four warps share. ``scripts/trials/bench_fp8.py --w8a8`` tries others.
    """
    if num_rows > ROWS_A_TILE:
        return Tiling(128, 128, 1, 8, 3)
    plain = tiling_of(num_outputs)
    return plain._replace(num_stages=plain.num_stages + 1)


def lines_asked(num_rows: int, row_bytes: int) -> int:
    """Return how many lines of each of ``num_rows`` rows are asked for: a power of 2, or none.

    The rows are those of all programs that ask, and ``row_bytes`` what each has of a row.
    """
    share, has = ASKED_BYTES // (num_rows * LINE_BYTES), row_bytes // LINE_BYTES
    return _power_of_2_to(min(share, has)) if share and has else 0


def _chosen_tiling(num_rows: int, num_outputs: int, scales: Scales | None) -> Tiling:
    if scales is None:
        return tiling_of(num_outputs, num_rows)
    chosen = quantised_tiling_of if scales.is_w8a8 else scaled_tiling_of
    return chosen(num_rows, num_outputs)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    rotary: Rotary | None = None,
    is_gated: bool = False,
    scales: Scales | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Multiply ``x [..., K]`` of at most ``MAX_ROWS`` rows by ``weight [N, K]``, to ``[..., N]``.

    At most one of three ends follows. ``residual [..., N]`` is added. Or the product's first heads
    are rotated by ``rotary``. Or, with ``is_gated``, ``silu(gate) * up`` of the product's halves is
    returned, ``[..., N / 2]``.

    A weight with ``scales`` is FP8, and takes ``MAX_SCALED_ROWS``, or with ``is_w8a8`` any number.
    If ``tiling`` is None, ``tiling_of``, ``scaled_tiling_of`` or ``quantised_tiling_of`` chooses
    it.
    """
    rows = x.reshape(-1, x.shape[-1])
    num_rows, num_inputs = rows.shape
    is_w8a8 = scales is not None and scales.is_w8a8
    num_outputs = weight.shape[0]
    num_columns = num_outputs // 2 if is_gated else num_outputs
    num_scales = 1 if scales is None else scales.scale.shape[1]
    columns_a_scale = 1 if scales is None else column_block(num_inputs, num_scales)
    if tiling is None:
        tiling = _chosen_tiling(num_rows, num_outputs, scales)
    row_scale = None
    in_float16 = tiling.in_float16 and not is_w8a8 and x.dtype == torch.bfloat16
    if is_w8a8:
        rows, row_scale = quantised_tokens(rows, num_scales)
    elif in_float16:
        rows, row_scale = half_rows(rows)
    if scales is not None:
        tiling = tiling._replace(block_k=min(tiling.block_k, columns_a_scale))
    # Of quantised rows, fewer than 16 would be multiplied in float16 after all.
    least = LEAST_ROWS_A_TILE if scales is None or is_w8a8 else LEAST_SCALED_ROWS_A_TILE
    most = QUANTISED_ROWS_A_TILE if is_w8a8 else tiling.block_m
    block_m = min(most, max(least, triton.next_power_of_2(num_rows)))
    row_tiles = triton.cdiv(num_rows, block_m)
    tiles = triton.cdiv(num_outputs, tiling.block_n)
    assert rows.stride(1) == 1 and weight.is_contiguous() and weight.shape[1] == num_inputs
    assert tiling.splits == 1 or tiles * row_tiles <= MAX_TILES
    assert scales is not None or num_rows <= MAX_ROWS
    assert is_gated + (residual is not None) + (rotary is not None) <= 1
    apart = num_columns if rotary is None else rotary.size // 2
    assert rotary is None or num_outputs % rotary.size == 0
    if residual is not None:
        residual = residual.reshape(num_rows, num_outputs).contiguous()
    out = torch.empty(num_rows, num_columns, dtype=x.dtype, device=x.device)
    partial_size = tiling.splits * num_rows * num_outputs if tiling.splits > 1 else 0
    partial = torch.empty(partial_size, dtype=torch.float32, device=x.device)
    is_even = (
        num_inputs % (tiling.block_k * tiling.splits) == 0 and num_outputs % tiling.block_n == 0
    )
    _linear_kernel[(tiles * row_tiles, tiling.splits)](
        rows,
        row_scale,
        weight,
        scales.scale if scales else None,
        scales.row_blocks if scales else None,
        bias,
        residual,
        rotary.cos if rotary else None,
        rotary.sin if rotary else None,
        out,
        partial,
        arrivals("linear", MAX_TILES, x.device),
        num_rows,
        num_outputs,
        num_inputs,
        rotary.num_columns if rotary else 0,
        apart,
        rows.stride(0),
        num_scales,
        ROW_TILES=row_tiles,
        IS_SCALED=scales is not None,
        IS_W8A8=is_w8a8,
        IN_FLOAT16=in_float16,
        COLUMNS_A_SCALE=columns_a_scale,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_ROTARY=rotary is not None,
        IS_GATED=is_gated,
        IS_EVEN=is_even,
        BLOCK_M=block_m,
        BLOCK_N=tiling.block_n,
        BLOCK_K=tiling.block_k,
        SPLITS=tiling.splits,
        LINE_BYTES=LINE_BYTES,
        LINES_ASKED=lines_asked(
            tiles * tiling.splits * tiling.block_n, num_inputs * weight.itemsize // tiling.splits
        ),
        EARLY=early(x.device),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        **launch_keywords(x.device),
    )
    return out.view(*x.shape[:-1], num_columns)
