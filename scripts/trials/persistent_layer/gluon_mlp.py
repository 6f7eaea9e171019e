"""Stream the weights of several MLPs through one resident program a multiprocessor, in Gluon.

Kernel by kernel, each product begins and ends alone: its first weights arrive while nothing is
computed, and its last sums are added while nothing arrives. Here one warp asks for this program's
share of all products as one unbroken list of tiles, by the bulk copy engine, into a ring in shared
memory. Another warp brings the rows of each tile, and waits at a product's border until all
programs have written what it reads. Four warps multiply.

A product's tiles are K-major, and each program has an equal run of them. So a tile of outputs may
be cut between programs. Each writes its partial sum, and the last to arrive adds the parts in their
order. The sums are the same every time.

All programs must be resident, because each waits for all others. A poll that takes too long sets
``FAULT`` and goes on, so that a wrong launch ends with a wrong answer that says so, and never
hangs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Triton 3.7 has another name for it.
barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier

BLOCK = gl.constexpr(64)
"""Outputs and inputs of a tile. Two tiles are a unit of the ring, 16 kB of weights."""
SEGMENTS = gl.constexpr(4)
"""So many programs share a tile of outputs at most."""
ROWS_BEHIND = gl.constexpr(4)
"""So many units of rows are on their way before the first must have arrived."""
MOST_POLLS = gl.constexpr(1 << 22)
"""At a load each 0.7 us, about three seconds."""
DONE, FAULT, READY = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)
"""Places of the counters: programs that ended, polls that did not end, and tiles by product."""


@gluon.jit
def _owner(unit, units, programs):
    """The program whose run has ``unit``. Program p begins at ``units * p // programs``."""
    return ((unit + 1) * programs - 1) // units


@gluon.jit
def parts_of(tile, a_tile, units, programs):
    """The first program that has a part of ``tile``, and how many have one."""
    first = _owner(tile * a_tile, units, programs)
    return first, _owner(tile * a_tile + a_tile - 1, units, programs) - first + 1


@gluon.jit  # type: ignore[untyped-decorator]
def _weights_partition(
    gate_up, down, ring, full, empty, layers, hidden, inner,
    SLOTS: gl.constexpr,
):  # fmt: skip
    """Ask for every unit of this program's runs, as soon as its slot of the ring is free."""
    p, programs = gl.program_id(0), gl.num_programs(0)
    i = 0
    for layer in range(layers):
        a_tile = hidden // BLOCK
        units = inner // BLOCK * a_tile
        for unit in range(units * p // programs, units * (p + 1) // programs):
            slot = i % SLOTS
            mbarrier.wait(empty.index(slot), (i // SLOTS & 1) ^ 1)
            mbarrier.expect(full.index(slot), 2 * BLOCK * BLOCK * 2)
            row = layer * 2 * inner + unit // a_tile * BLOCK
            k = unit % a_tile * BLOCK
            tma.async_copy_global_to_shared(
                gate_up, [row, k], full.index(slot), ring.index(2 * slot)
            )
            tma.async_copy_global_to_shared(
                gate_up, [row + inner, k], full.index(slot), ring.index(2 * slot + 1)
            )
            i += 1
        a_tile = inner // (2 * BLOCK)
        units = hidden // BLOCK * a_tile
        for unit in range(units * p // programs, units * (p + 1) // programs):
            slot = i % SLOTS
            mbarrier.wait(empty.index(slot), (i // SLOTS & 1) ^ 1)
            mbarrier.expect(full.index(slot), 2 * BLOCK * BLOCK * 2)
            row = layer * hidden + unit // a_tile * BLOCK
            k = unit % a_tile * (2 * BLOCK)
            tma.async_copy_global_to_shared(down, [row, k], full.index(slot), ring.index(2 * slot))
            tma.async_copy_global_to_shared(
                down, [row, k + BLOCK], full.index(slot), ring.index(2 * slot + 1)
            )
            i += 1


@gluon.jit
def _await_rows(counters, place, wanted):
    """Wait until ``wanted`` tiles of a product are written."""
    polls = 0
    seen = gl.load(counters + place, volatile=True)
    while (seen < wanted) & (polls < MOST_POLLS):
        seen = gl.load(counters + place, volatile=True)
        polls += 1
    # What was written before the last arrival is read after this.
    if gl.atomic_add(counters + place, 0, sem="acq_rel") < wanted:
        gl.atomic_add(counters + FAULT, 1)


@gluon.jit  # type: ignore[untyped-decorator]
def bring(
    rows, stride, k, ring, full, empty, i, begin,
    CHUNKS: gl.constexpr, NUM_ROWS: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Ask for the rows of unit ``i``, and hand over those of the unit ``ROWS_BEHIND`` before."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    slot = i % SLOTS
    mbarrier.wait(empty.index(slot), (i // SLOTS & 1) ^ 1)
    m = gl.arange(0, NUM_ROWS, gl.SliceLayout(1, LAYOUT))
    c = gl.arange(0, BLOCK, gl.SliceLayout(0, LAYOUT))
    for chunk in gl.static_range(CHUNKS):
        async_copy.async_copy_global_to_shared(
            ring.index(2 * slot + chunk),
            rows + m[:, None] * stride + (k + chunk * BLOCK + c)[None, :],
            cache_modifier=".cg",
        )
    async_copy.commit_group()
    if i - begin >= ROWS_BEHIND:
        async_copy.wait_group(ROWS_BEHIND)
        fence_async_shared()
        barrier()
        mbarrier.arrive(full.index((i - ROWS_BEHIND) % SLOTS), count=1)
    return i + 1


@gluon.jit  # type: ignore[untyped-decorator]
def hand_over(full, i, begin, SLOTS: gl.constexpr):
    """Hand over the rows of the units that no later one of the same product hands over."""
    async_copy.wait_group(0)
    fence_async_shared()
    barrier()
    for late in range(gl.maximum(i - ROWS_BEHIND, begin), i):
        mbarrier.arrive(full.index(late % SLOTS), count=1)


@gluon.jit  # type: ignore[untyped-decorator]
def _rows_partition(
    x, h, counters, ring, full, empty, layers, hidden, inner,
    NUM_ROWS: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Bring the rows that each unit is multiplied by, once they are all written."""
    p, programs = gl.program_id(0), gl.num_programs(0)
    i = 0
    for layer in range(layers):
        a_tile = hidden // BLOCK
        units = inner // BLOCK * a_tile
        if layer > 0:
            _await_rows(counters, READY + 2 * layer - 1, hidden // BLOCK)
        rows = x + layer * NUM_ROWS * hidden
        begin = i
        for unit in range(units * p // programs, units * (p + 1) // programs):
            k = unit % a_tile * BLOCK
            i = bring(rows, hidden, k, ring, full, empty, i, begin, 1, NUM_ROWS, SLOTS)
        hand_over(full, i, begin, SLOTS)
        _await_rows(counters, READY + 2 * layer, inner // BLOCK)
        a_tile = inner // (2 * BLOCK)
        units = hidden // BLOCK * a_tile
        begin = i
        for unit in range(units * p // programs, units * (p + 1) // programs):
            k = unit % a_tile * (2 * BLOCK)
            i = bring(h, inner, k, ring, full, empty, i, begin, 2, NUM_ROWS, SLOTS)
        hand_over(full, i, begin, SLOTS)


@gluon.jit
def is_last(arrived, parts):
    """Count this program's part of a tile. True: all parts are there, and the count is 0 again."""
    barrier()
    before = gl.atomic_add(arrived, 1, sem="acq_rel")
    if before == parts - 1:
        gl.store(arrived, 0)
    return before == parts - 1


@gluon.jit  # type: ignore[untyped-decorator]
def multiplied(
    one, other, weights, rows, full, empty, rows_full, rows_empty, i, begins,
    SLOTS: gl.constexpr, IS_GATED: gl.constexpr, MULTIPLIES: gl.constexpr,
):  # fmt: skip
    """Return the sums with unit ``i`` in them, once it is there, and hand its slot back."""
    slot = i % SLOTS
    turn = i // SLOTS & 1
    mbarrier.wait(full.index(slot), turn)
    mbarrier.wait(rows_full.index(slot), turn)
    if MULTIPLIES:
        right = rows.index(2 * slot).permute((1, 0))
        one = warpgroup_mma(weights.index(2 * slot), right, one, use_acc=begins == 0, is_async=True)
        if IS_GATED:
            other = warpgroup_mma(
                weights.index(2 * slot + 1), right, other, use_acc=begins == 0, is_async=True
            )
            one, other = warpgroup_mma_wait(0, [one, other])
        else:
            right = rows.index(2 * slot + 1).permute((1, 0))
            one = warpgroup_mma(weights.index(2 * slot + 1), right, one, is_async=True)
            one = warpgroup_mma_wait(0, [one])
    mbarrier.arrive(empty.index(slot), count=1)
    mbarrier.arrive(rows_empty.index(slot), count=1)
    return one, other


@gluon.jit  # type: ignore[untyped-decorator]
def summed(
    one, other, partial, arrived, place, tile, a_tile, units,
    SIZE: gl.constexpr, HAS_TWO: gl.constexpr,
):  # fmt: skip
    """Leave this program's part of a tile, and return whether all parts are there, and the sums.

    They are added in the order of the programs, so they are the same every time.
    """
    p = gl.program_id(0)
    first, parts = parts_of(tile, a_tile, units, gl.num_programs(0))
    is_whole = parts == 1
    if parts > 1:
        mine = partial + (tile * SEGMENTS + p - first) * 2 * SIZE
        gl.store(mine + place, one)
        if HAS_TWO:
            gl.store(mine + SIZE + place, other)
        is_whole = is_last(arrived + tile, parts)
        if is_whole:
            one = gl.zeros_like(one)
            other = gl.zeros_like(other)
            for part in range(parts):
                its = partial + (tile * SEGMENTS + part) * 2 * SIZE
                one += gl.load(its + place, cache_modifier=".cg")
                if HAS_TWO:
                    other += gl.load(its + SIZE + place, cache_modifier=".cg")
    return is_whole, one, other


@gluon.jit  # type: ignore[untyped-decorator]
def _multiply_partition(
    x, h, counters, arrived, partial, weights, rows, full, empty, rows_full, rows_empty,
    layers, hidden, inner,
    NUM_ROWS: gl.constexpr, SLOTS: gl.constexpr, MULTIPLIES: gl.constexpr,
):  # fmt: skip
    """Multiply each unit as it arrives, and finish a tile of outputs where its last part ends."""
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, NUM_ROWS, 16])
    TYPE: gl.constexpr = h.dtype.element_ty
    SIZE: gl.constexpr = BLOCK * NUM_ROWS
    p, programs = gl.program_id(0), gl.num_programs(0)
    n = gl.arange(0, BLOCK, gl.SliceLayout(1, SUMS))
    m = gl.arange(0, NUM_ROWS, gl.SliceLayout(0, SUMS))
    place = n[:, None] * NUM_ROWS + m[None, :]
    one = gl.zeros([BLOCK, NUM_ROWS], gl.float32, SUMS)
    other = gl.zeros([BLOCK, NUM_ROWS], gl.float32, SUMS)
    i = 0
    for layer in range(layers):
        # Gate and up: a unit is a tile of each.
        a_tile = hidden // BLOCK
        units = inner // BLOCK * a_tile
        low, high = units * p // programs, units * (p + 1) // programs
        for unit in range(low, high):
            begins = (unit == low) | (unit % a_tile == 0)
            one, other = multiplied(
                one, other, weights, rows, full, empty, rows_full, rows_empty, i, begins,
                SLOTS, True, MULTIPLIES,
            )  # fmt: skip
            i += 1
            if (unit == high - 1) | (unit % a_tile == a_tile - 1):
                tile = unit // a_tile
                is_whole, one, other = summed(
                    one, other, partial, arrived, place, tile, a_tile, units, SIZE, True
                )
                if is_whole:
                    # Rounded where torch's operations round.
                    gate = one.to(TYPE).to(gl.float32)
                    gated = (gate / (1.0 + gl.exp(-gate))).to(TYPE).to(gl.float32)
                    value = (gated * other.to(TYPE).to(gl.float32)).to(TYPE)
                    gl.store(h + m[None, :] * inner + (tile * BLOCK + n)[:, None], value)
                    barrier()
                    gl.atomic_add(counters + READY + 2 * layer, 1, sem="release")
        # Down: a unit is two tiles of one output.
        a_tile = inner // (2 * BLOCK)
        units = hidden // BLOCK * a_tile
        low, high = units * p // programs, units * (p + 1) // programs
        for unit in range(low, high):
            begins = (unit == low) | (unit % a_tile == 0)
            one, other = multiplied(
                one, other, weights, rows, full, empty, rows_full, rows_empty, i, begins,
                SLOTS, False, MULTIPLIES,
            )  # fmt: skip
            i += 1
            if (unit == high - 1) | (unit % a_tile == a_tile - 1):
                tile = unit // a_tile
                is_whole, one, other = summed(
                    one, other, partial, arrived, place, tile, a_tile, units, SIZE, False
                )
                if is_whole:
                    at = layer * NUM_ROWS * hidden + m[None, :] * hidden
                    at += (tile * BLOCK + n)[:, None]
                    before = gl.load(x + at, cache_modifier=".cg").to(gl.float32)
                    value = (one.to(TYPE).to(gl.float32) + before).to(TYPE)
                    gl.store(x + NUM_ROWS * hidden + at, value)
                    barrier()
                    gl.atomic_add(counters + READY + 2 * layer + 1, 1, sem="release")
    barrier()
    if gl.atomic_add(counters + DONE, 1, sem="acq_rel") == programs - 1:
        # Nobody polls any more.
        for used in range(2 * layers):
            gl.store(counters + READY + used, 0)
        gl.store(counters + DONE, 0)


@gluon.jit  # type: ignore[untyped-decorator]
def _mlp_kernel(
    x, h, gate_up, down, counters, arrived, partial, layers, hidden, inner,
    NUM_ROWS: gl.constexpr, SLOTS: gl.constexpr, MULTIPLIES: gl.constexpr,
):  # fmt: skip
    TYPE: gl.constexpr = h.dtype.element_ty
    weights = gl.allocate_shared_memory(TYPE, [2 * SLOTS, BLOCK, BLOCK], gate_up.layout)
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
    gl.warp_specialize(
        [
            (
                _multiply_partition,
                (
                    x, h, counters, arrived, partial, weights, rows, full, empty, rows_full,
                    rows_empty, layers, hidden, inner, NUM_ROWS, SLOTS, MULTIPLIES,
                ),
            ),
            (
                _weights_partition,
                (gate_up, down, weights, full, empty, layers, hidden, inner, SLOTS),
            ),
            (
                _rows_partition,
                (
                    x, h, counters, rows, rows_full, rows_empty, layers, hidden, inner, NUM_ROWS,
                    SLOTS,
                ),
            ),
        ],
        [1, 1],
        [48, 64],
    )  # fmt: skip


class Buffers(NamedTuple):
    """What the kernel writes: ``x [L + 1, M, H]``, of which the first is read, and its scratch."""

    x: Tensor
    h: Tensor
    counters: Tensor
    arrived: Tensor
    partial: Tensor


def buffers_of(layers: int, num_rows: int, hidden: int, inner: int, like: Tensor) -> Buffers:
    """Return zeroed buffers for ``mlps``."""
    tiles = max(hidden, inner) // BLOCK.value
    device = like.device
    size = tiles * SEGMENTS.value * 2 * BLOCK.value * num_rows
    return Buffers(
        torch.zeros(layers + 1, num_rows, hidden, dtype=like.dtype, device=device),
        torch.zeros(num_rows, inner, dtype=like.dtype, device=device),
        torch.zeros(READY.value + 2 * layers, dtype=torch.int32, device=device),
        torch.zeros(tiles, dtype=torch.int32, device=device),
        torch.zeros(size, dtype=torch.float32, device=device),
    )


def most_parts(units: int, a_tile: int, programs: int) -> int:
    """Return how many programs share a tile of ``a_tile`` units at most."""
    return -(-(a_tile - 1) // (units // programs)) + 1


def mlps(
    buffers: Buffers,
    gate_up: Tensor,
    down: Tensor,
    *,
    programs: int,
    slots: int,
    multiplies: bool = True,
) -> None:
    """Compute ``x[i + 1] = x[i] + down[i](silu(gate) * up)`` for each layer, in ``buffers``.

    ``gate_up [L, 2 * I, H]`` and ``down [L, H, I]`` are contiguous. With ``multiplies`` false the
    weights are streamed and not used: that is the ring's own time.
    Raise ``ValueError`` if more programs would share a tile of outputs than there is room for.
    """
    layers, twice_inner, hidden = gate_up.shape
    inner = twice_inner // 2
    block = BLOCK.value
    assert hidden % block == 0 and inner % (2 * block) == 0
    for tiles, a_tile in (
        (inner // block, hidden // block),
        (hidden // block, inner // 2 // block),
    ):
        units = tiles * a_tile
        if units < programs or most_parts(units, a_tile, programs) > SEGMENTS.value:
            raise ValueError(f"{units} units for {programs} programs: a tile has too many parts")
    layout = gl.NVMMASharedLayout.get_default_for([block, block], gl.bfloat16)
    described = [
        TensorDescriptor.from_tensor(each.view(-1, each.shape[-1]), [block, block], layout)
        for each in (gate_up, down)
    ]
    _mlp_kernel[(programs,)](
        buffers.x,
        buffers.h,
        *described,
        buffers.counters,
        buffers.arrived,
        buffers.partial,
        layers,
        hidden,
        inner,
        NUM_ROWS=buffers.x.shape[1],
        SLOTS=slots,
        MULTIPLIES=multiplies,
        num_warps=4,
    )
