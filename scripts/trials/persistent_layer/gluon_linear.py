"""Multiply few rows by one weight in equal runs, with a ring of bulk copies, in Gluon.

It is a product of ``gluon_mlp`` alone in its launch, so nobody waits at a border inside a kernel.
The launch is early: one warp asks for weights at once, before the kernel ahead has ended, until the
ring is full. So two launches' rings lie side by side on a multiprocessor. Another warp waits for
the kernel ahead before it brings rows.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.counters import arrivals
from cgbench.kernels.gpu import early, launch_keywords
from persistent_layer.gluon_mlp import (
    BLOCK,
    SEGMENTS,
    bring,
    hand_over,
    most_parts,
    multiplied,
    summed,
)

REGISTERS = 112
"""With so many registers a thread two programs fit on a multiprocessor."""
MOST_TILES = 4096


@gluon.jit  # type: ignore[untyped-decorator]
def _run(outputs, inputs, IS_GATED: gl.constexpr):
    """The units a tile has, those of all tiles, and this program's run of them."""
    a_tile = inputs // (BLOCK if IS_GATED else 2 * BLOCK)
    units = outputs // BLOCK * a_tile
    p, programs = gl.program_id(0), gl.num_programs(0)
    return a_tile, units, units * p // programs, units * (p + 1) // programs


@gluon.jit  # type: ignore[untyped-decorator]
def _weights_partition(
    weight, ring, full, empty, outputs, inputs, SLOTS: gl.constexpr, IS_GATED: gl.constexpr
):
    """Ask for every unit of this program's run, as soon as its slot of the ring is free."""
    a_tile, _, low, high = _run(outputs, inputs, IS_GATED)
    for i in range(high - low):
        unit = low + i
        slot = i % SLOTS
        mbarrier.wait(empty.index(slot), (i // SLOTS & 1) ^ 1)
        mbarrier.expect(full.index(slot), 2 * BLOCK * BLOCK * 2)
        row = unit // a_tile * BLOCK
        if IS_GATED:
            k = unit % a_tile * BLOCK
            second = [row + outputs, k]
        else:
            k = unit % a_tile * (2 * BLOCK)
            second = [row, k + BLOCK]
        tma.async_copy_global_to_shared(weight, [row, k], full.index(slot), ring.index(2 * slot))
        tma.async_copy_global_to_shared(weight, second, full.index(slot), ring.index(2 * slot + 1))


@gluon.jit  # type: ignore[untyped-decorator]
def _rows_partition(
    x, ring, full, empty, outputs, inputs,
    NUM_ROWS: gl.constexpr, SLOTS: gl.constexpr, IS_GATED: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Bring the rows that each unit is multiplied by, once the kernel ahead has written them."""
    CHUNKS: gl.constexpr = 1 if IS_GATED else 2
    a_tile, _, low, high = _run(outputs, inputs, IS_GATED)
    if EARLY:
        gdc_wait()
    i = 0
    for unit in range(low, high):
        k = unit % a_tile * (CHUNKS * BLOCK)
        i = bring(x, inputs, k, ring, full, empty, i, 0, CHUNKS, NUM_ROWS, SLOTS)
    hand_over(full, i, 0, SLOTS)


@gluon.jit  # type: ignore[untyped-decorator]
def _multiply_partition(
    residual, out, arrived, partial, weights, rows, full, empty, rows_full, rows_empty,
    outputs, inputs,
    NUM_ROWS: gl.constexpr, SLOTS: gl.constexpr, IS_GATED: gl.constexpr, HAS_RESIDUAL: gl.constexpr,
):  # fmt: skip
    """Multiply each unit as it arrives, and finish a tile of outputs where its last part ends."""
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, NUM_ROWS, 16])
    TYPE: gl.constexpr = out.dtype.element_ty
    SIZE: gl.constexpr = BLOCK * NUM_ROWS
    a_tile, units, low, high = _run(outputs, inputs, IS_GATED)
    n = gl.arange(0, BLOCK, gl.SliceLayout(1, SUMS))
    m = gl.arange(0, NUM_ROWS, gl.SliceLayout(0, SUMS))
    place = n[:, None] * NUM_ROWS + m[None, :]
    one = gl.zeros([BLOCK, NUM_ROWS], gl.float32, SUMS)
    other = gl.zeros([BLOCK, NUM_ROWS], gl.float32, SUMS)
    for i in range(high - low):
        unit = low + i
        begins = (i == 0) | (unit % a_tile == 0)
        one, other = multiplied(
            one, other, weights, rows, full, empty, rows_full, rows_empty, i, begins,
            SLOTS, IS_GATED, True,
        )  # fmt: skip
        if (unit == high - 1) | (unit % a_tile == a_tile - 1):
            tile = unit // a_tile
            is_whole, one, other = summed(
                one, other, partial, arrived, place, tile, a_tile, units, SIZE, IS_GATED
            )
            if is_whole:
                # Rounded where torch's operations round.
                value = one.to(TYPE).to(gl.float32)
                at = m[None, :] * outputs + (tile * BLOCK + n)[:, None]
                if IS_GATED:
                    value = (value / (1.0 + gl.exp(-value))).to(TYPE).to(gl.float32)
                    value *= other.to(TYPE).to(gl.float32)
                if HAS_RESIDUAL:
                    value += gl.load(residual + at, cache_modifier=".cg").to(gl.float32)
                gl.store(out + at, value.to(TYPE))


@gluon.jit  # type: ignore[untyped-decorator]
def _linear_kernel(
    x, weight, residual, out, arrived, partial, outputs, inputs,
    NUM_ROWS: gl.constexpr, SLOTS: gl.constexpr, IS_GATED: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    TYPE: gl.constexpr = out.dtype.element_ty
    weights = gl.allocate_shared_memory(TYPE, [2 * SLOTS, BLOCK, BLOCK], weight.layout)
    rows = gl.allocate_shared_memory(
        TYPE,
        [2 * SLOTS, NUM_ROWS, BLOCK],
        gl.NVMMASharedLayout.get_default_for([NUM_ROWS, BLOCK], TYPE),
    )
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    rows_full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    rows_empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
        mbarrier.init(rows_full.index(slot), count=1)
        mbarrier.init(rows_empty.index(slot), count=1)
    fence_async_shared()
    if EARLY:
        gdc_launch_dependents()
    gl.warp_specialize(
        [
            (
                _multiply_partition,
                (
                    residual, out, arrived, partial, weights, rows, full, empty, rows_full,
                    rows_empty, outputs, inputs, NUM_ROWS, SLOTS, IS_GATED, HAS_RESIDUAL,
                ),
            ),
            (
                _weights_partition,
                (weight, weights, full, empty, outputs, inputs, SLOTS, IS_GATED),
            ),
            (
                _rows_partition,
                (
                    x, rows, rows_full, rows_empty, outputs, inputs, NUM_ROWS, SLOTS, IS_GATED,
                    EARLY,
                ),
            ),
        ],
        [1, 1],
        [48, 64],
    )  # fmt: skip


def linear_in_rings(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    is_gated: bool = False,
    programs: int,
    slots: int,
) -> Tensor:
    """Return ``x [M, K] @ weight.T``, with ``residual`` added, or ``silu(gate) * up`` of halves.

    M is 8 or a larger power of two. Raise ``ValueError`` if more programs would share a tile of
    outputs than there is room for.
    """
    num_rows, inputs = x.shape
    outputs, block = weight.shape[0] // (2 if is_gated else 1), BLOCK.value
    a_tile, tiles = inputs // block // (1 if is_gated else 2), outputs // block
    units = tiles * a_tile
    if units < programs or most_parts(units, a_tile, programs) > SEGMENTS.value:
        raise ValueError(f"{units} units for {programs} programs: a tile has too many parts")
    layout = gl.NVMMASharedLayout.get_default_for([block, block], gl.bfloat16)
    size = tiles * SEGMENTS.value * 2 * block * num_rows
    out = torch.empty(num_rows, outputs, dtype=x.dtype, device=x.device)
    _linear_kernel[(programs,)](
        x,
        TensorDescriptor.from_tensor(weight, [block, block], layout),
        x if residual is None else residual,
        out,
        arrivals("linear_in_rings", MOST_TILES, x.device),
        torch.empty(size, dtype=torch.float32, device=x.device),
        outputs,
        inputs,
        NUM_ROWS=num_rows,
        SLOTS=slots,
        IS_GATED=is_gated,
        HAS_RESIDUAL=residual is not None,
        EARLY=early(x.device),
        num_warps=4,
        maxnreg=REGISTERS,
        **launch_keywords(x.device),
    )
    return out
