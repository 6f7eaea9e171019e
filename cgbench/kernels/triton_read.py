"""Read memory and do nothing else, to measure read bandwidth."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# 32 KiB a step, four steps a program: enough loads in flight to fill the memory's queues.
BLOCK = 8192
STEPS = 4
NUM_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _read_kernel(source, sums, BLOCK: tl.constexpr, STEPS: tl.constexpr) -> None:
    program = tl.program_id(0)
    start = program.to(tl.int64) * (BLOCK * STEPS)
    total = tl.zeros([BLOCK], tl.int32)
    for step in tl.static_range(STEPS):
        total += tl.load(source + start + step * BLOCK + tl.arange(0, BLOCK))
    # One word for 128 KiB read, so that the loads are not dead code.
    tl.store(sums + program, tl.sum(total, 0))


def read(words: Tensor) -> Tensor:
    """Read all of ``words``, and return a sum for each 32,768 of them.

    ``words`` are int32, and a multiple of 32,768.
    """
    assert words.dtype == torch.int32 and words.numel() % (BLOCK * STEPS) == 0
    sums = torch.empty(words.numel() // (BLOCK * STEPS), dtype=torch.int32, device=words.device)
    _read_kernel[(len(sums),)](words, sums, BLOCK=BLOCK, STEPS=STEPS, num_warps=NUM_WARPS)
    return sums
