"""Multiply few rows by weights that are cut in equal runs of tiles, in Triton.

``triton_linear`` gives each program whole tiles of outputs, or an equal part of K of one. 96 tiles
leave 36 of 132 multiprocessors idle, and 344 take three turns where 2.6 would do. Here all tiles of
a product are one K-major list, and each program has an equal run of it. A tile of outputs that is
cut is added by the last program that has a part of it, in the parts' order. So the sums are the
same every time. No program waits for another.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.counters import arrivals
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.triton_gate import gated_product
from cgbench.kernels.triton_linear import LEAST_ROWS_A_TILE, MAX_TILES, ask_into_l2
from cgbench.kernels.triton_rotary import Rotary, load_tables, turned

LINE_ITEMS = tl.constexpr(64)
"""Weights of a line of 128 bytes."""

ASKED_UNITS = 2
"""So many of a program's first tiles are asked into L2 before it waits for its rows."""


@triton.jit
def owner_of(unit, units, programs):
    """Return the program whose run has ``unit``: program p begins at ``units * p // programs``."""
    return ((unit + 1) * programs - 1) // units


@triton.jit  # type: ignore[untyped-decorator]
def row_of(tile, i, num_outputs, apart, IN_PAIRS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the rows of weights that a tile's places ``i`` have: in pairs, half and half."""
    if IN_PAIRS:
        c = tile * (BLOCK_N // 2) + i % (BLOCK_N // 2)
        return c // apart * (2 * apart) + c % apart + i // (BLOCK_N // 2) * apart
    return tile * BLOCK_N + i


@triton.jit  # type: ignore[untyped-decorator]
def ask_for_units(
    weight, unit, units, num_outputs, apart, i,
    NUM_INPUTS: tl.constexpr, IN_PAIRS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Ask for ``NUMBER`` units of a run, from ``unit`` on, into L2."""
    A_TILE: tl.constexpr = NUM_INPUTS // BLOCK_K
    line = tl.arange(0, BLOCK_K // LINE_ITEMS) * LINE_ITEMS
    for ahead in range(NUMBER):
        asked = tl.minimum(unit + ahead, units - 1)
        n = row_of(asked // A_TILE, i, num_outputs, apart, IN_PAIRS, BLOCK_N)
        column = asked % A_TILE * BLOCK_K + line
        ask_into_l2(weight + n.to(tl.int64)[:, None] * NUM_INPUTS + column[None, :])


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _runs_kernel(
    x,
    weight,
    bias,
    residual,
    cos,
    sin,
    out,
    partial,
    arrived,
    num_rows,
    num_outputs,
    num_rotated,
    apart,
    x_stride,
    NUM_INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_ROTARY: tl.constexpr,
    IS_GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    ASKED_UNITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    IN_PAIRS: tl.constexpr = IS_GATED or HAS_ROTARY
    COLUMNS: tl.constexpr = BLOCK_N // 2 if IN_PAIRS else BLOCK_N
    A_TILE: tl.constexpr = NUM_INPUTS // BLOCK_K
    SIZE: tl.constexpr = BLOCK_N * BLOCK_M
    p, programs = tl.program_id(0), tl.num_programs(0)
    units = num_outputs // BLOCK_N * A_TILE
    low, high = units * p // programs, units * (p + 1) // programs
    m = tl.arange(0, BLOCK_M)
    i = tl.arange(0, BLOCK_N)
    is_row = m < num_rows
    place = i[:, None] * BLOCK_M + m[None, :]
    if EARLY:
        ask_for_units(weight, low, units, num_outputs, apart, i, NUM_INPUTS, IN_PAIRS, BLOCK_N,
                      BLOCK_K, ASKED_UNITS)  # fmt: skip
        gdc_wait()
    for tile in range(low // A_TILE, (high - 1) // A_TILE + 1):
        n = row_of(tile, i, num_outputs, apart, IN_PAIRS, BLOCK_N)
        from_weight = weight + n.to(tl.int64)[:, None] * NUM_INPUTS
        begin = tl.maximum(low - tile * A_TILE, 0)
        end = tl.minimum(high - tile * A_TILE, A_TILE)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for unit in range(begin, end):
            k = unit * BLOCK_K + tl.arange(0, BLOCK_K)
            w = tl.load(from_weight + k[None, :], eviction_policy="evict_first")
            rows = tl.load(x + m[None, :] * x_stride + k[:, None], mask=is_row[None, :], other=0.0)
            acc = tl.dot(w, rows, acc)
        if EARLY and (tile + 1) * A_TILE < high:
            ask_for_units(weight, (tile + 1) * A_TILE, units, num_outputs, apart, i, NUM_INPUTS,
                          IN_PAIRS, BLOCK_N, BLOCK_K, ASKED_UNITS)  # fmt: skip
        first = owner_of(tile * A_TILE, units, programs)
        parts = owner_of(tile * A_TILE + A_TILE - 1, units, programs) - first + 1
        is_last = True
        if parts > 1:
            of_tile = partial + tile * MOST_PARTS * SIZE
            tl.store(of_tile + (p - first) * SIZE + place, acc)
            # All of this program's stores before its arrival is counted.
            tl.debug_barrier()
            is_last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == parts - 1
            if is_last:
                acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
                for part in range(parts):
                    acc += tl.load(of_tile + part * SIZE + place, cache_modifier=".cg")
                tl.store(arrived + tile, 0)
        if is_last:
            if HAS_BIAS:
                acc += tl.load(bias + n).to(tl.float32)[:, None]
            # Rounded where torch's operations round.
            product = acc.to(out.dtype.element_ty)
            if IN_PAIRS:
                c = tile * COLUMNS + tl.arange(0, COLUMNS)
                pairs = tl.reshape(product, [2, COLUMNS, BLOCK_M])
                one, other = tl.split(tl.permute(pairs, (1, 2, 0)))
                keep = is_row[None, :] & (c >= 0)[:, None]
                if IS_GATED:
                    to_pair = out + m[None, :] * (num_outputs // 2) + c[:, None]
                    tl.store(to_pair, gated_product(one, other), mask=keep)
                else:
                    at = c // apart * (2 * apart) + c % apart
                    tables = m[None, :] * (2 * apart) + (c % apart)[:, None]
                    cos_low, cos_high, sin_low, sin_high = load_tables(
                        cos, sin, tables, apart, keep & (at < num_rotated)[:, None]
                    )
                    one, other = turned(one, other, cos_low, cos_high, sin_low, sin_high)
                    to_pair = out + m[None, :] * num_outputs + at[:, None]
                    tl.store(to_pair, one, mask=keep)
                    tl.store(to_pair + apart, other, mask=keep)
            else:
                to_out = m[None, :] * num_outputs + n[:, None]
                if HAS_RESIDUAL:
                    added = tl.load(residual + to_out, mask=is_row[None, :], other=0.0)
                    wide = product.to(tl.float32) + added.to(tl.float32)
                    product = wide.to(out.dtype.element_ty)
                tl.store(out + to_out, product, mask=is_row[None, :])
    if EARLY:
        gdc_launch_dependents()


def can_run(x: Tensor, weight: Tensor, block_n: int = 64, block_k: int = 128) -> bool:
    """Return whether the weights are whole tiles, and a program has one at least."""
    return weight.shape[0] % block_n == 0 and weight.shape[1] % block_k == 0


def linear_in_runs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    programs: int,
    residual: Tensor | None = None,
    rotary: Rotary | None = None,
    is_gated: bool = False,
    block_n: int = 64,
    block_k: int = 128,
    num_warps: int = 4,
    num_stages: int = 5,
) -> Tensor:
    """Return what ``triton_linear.linear`` returns, computed by ``programs`` equal runs.

    ``weight [N, K]`` must be whole tiles (``can_run``).
    """
    rows = x.reshape(-1, x.shape[-1])
    num_rows, num_inputs = rows.shape
    num_outputs = weight.shape[0]
    a_tile, tiles = num_inputs // block_k, num_outputs // block_n
    programs = min(programs, a_tile * tiles)
    assert can_run(rows, weight, block_n, block_k) and tiles <= MAX_TILES
    most_parts = -(-(a_tile - 1) // (a_tile * tiles // programs)) + 1
    block_m = max(LEAST_ROWS_A_TILE, triton.next_power_of_2(num_rows))
    columns = num_outputs // 2 if is_gated else num_outputs
    out = torch.empty(num_rows, columns, dtype=x.dtype, device=x.device)
    partial = torch.empty(
        tiles * most_parts * block_n * block_m, dtype=torch.float32, device=x.device
    )
    _runs_kernel[(programs,)](
        rows,
        weight,
        bias,
        None if residual is None else residual.reshape(num_rows, num_outputs).contiguous(),
        rotary.cos if rotary else None,
        rotary.sin if rotary else None,
        out,
        partial,
        arrivals("runs", MAX_TILES, x.device),
        num_rows,
        num_outputs,
        rotary.num_columns if rotary else 0,
        columns if rotary is None else rotary.size // 2,
        rows.stride(0),
        NUM_INPUTS=num_inputs,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_ROTARY=rotary is not None,
        IS_GATED=is_gated,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        MOST_PARTS=most_parts,
        ASKED_UNITS=ASKED_UNITS,
        EARLY=early(x.device),
        num_warps=num_warps,
        num_stages=num_stages,
        **launch_keywords(x.device),
    )
    return out.view(*x.shape[:-1], columns)
