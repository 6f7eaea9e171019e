"""Read weights through a ring in shared memory and do nothing else, in Gluon.

It is what the resident kernel of ``gluon_mlp`` could reach if nobody waited for anybody: one warp
asks for boxes of weights by the bulk copy engine, another hands each slot back.
"""

from typing import NamedTuple

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


class Ring(NamedTuple):
    """How weights are asked for: boxes of ``rows`` x ``columns`` into ``slots`` of a ring, by
    ``programs``. A program has boxes side by side, or with ``takes_turns`` every so many-th."""

    rows: int
    columns: int
    slots: int
    programs: int
    takes_turns: bool


@gluon.jit
def _share(boxes):
    p, programs = gl.program_id(0), gl.num_programs(0)
    return boxes * p // programs, boxes * (p + 1) // programs


@gluon.jit  # type: ignore[untyped-decorator]
def _ask(
    weights, ring, full, empty, boxes, a_row,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, SLOTS: gl.constexpr, TAKES_TURNS: gl.constexpr,
):  # fmt: skip
    low, high = _share(boxes)
    for i in range(high - low):
        box = i * gl.num_programs(0) + gl.program_id(0) if TAKES_TURNS else low + i
        slot = i % SLOTS
        mbarrier.wait(empty.index(slot), (i // SLOTS & 1) ^ 1)
        mbarrier.expect(full.index(slot), ROWS * COLUMNS * 2)
        place = [box // a_row * ROWS, box % a_row * COLUMNS]
        tma.async_copy_global_to_shared(weights, place, full.index(slot), ring.index(slot))


@gluon.jit  # type: ignore[untyped-decorator]
def _hand_back(full, empty, boxes, SLOTS: gl.constexpr):
    low, high = _share(boxes)
    for i in range(high - low):
        mbarrier.wait(full.index(i % SLOTS), i // SLOTS & 1)
        mbarrier.arrive(empty.index(i % SLOTS), count=1)


@gluon.jit  # type: ignore[untyped-decorator]
def _stream_kernel(
    weights, boxes, a_row,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, SLOTS: gl.constexpr, TAKES_TURNS: gl.constexpr,
):  # fmt: skip
    ring = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, ROWS, COLUMNS], weights.layout)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_hand_back, (full, empty, boxes, SLOTS)),
            (_ask, (weights, ring, full, empty, boxes, a_row, ROWS, COLUMNS, SLOTS, TAKES_TURNS)),
        ],
        [1],
        [48],
    )


def stream(weights: Tensor, ring: Ring) -> None:
    """Read ``weights [N, K]`` in bfloat16 once. Boxes must divide it."""
    layout = gl.NVMMASharedLayout.get_default_for([ring.rows, ring.columns], gl.bfloat16)
    described = TensorDescriptor.from_tensor(weights, [ring.rows, ring.columns], layout)
    a_row = weights.shape[1] // ring.columns
    boxes = weights.shape[0] // ring.rows * a_row
    _stream_kernel[(ring.programs,)](
        described,
        boxes,
        a_row,
        ROWS=ring.rows,
        COLUMNS=ring.columns,
        SLOTS=ring.slots,
        TAKES_TURNS=ring.takes_turns,
        num_warps=4,
    )
