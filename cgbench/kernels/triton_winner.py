"""Find the largest of what each rank found, in two Triton kernels, where torch's are eight.

They stand on either side of the exchange in ``collectives.argmax_over_ranks``. ``winner`` defines
them in torch's operations. A NaN beside an infinity is the one exception, because here they are
equals.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords


@triton.jit(do_not_specialize=["row_stride", "first"])  # type: ignore[untyped-decorator]
def _pack_kernel(part, indices, out, row_stride, first, EARLY: tl.constexpr) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    index = tl.load(indices + row)
    value = tl.load(part + row.to(tl.int64) * row_stride + index)
    tl.store(out + 2 * row, value.to(tl.float32))
    tl.store(out + 2 * row + 1, (first + index).to(tl.float32))


@triton.jit  # type: ignore[untyped-decorator]
def _winner_kernel(packed, out, num_rows, RANKS: tl.constexpr, EARLY: tl.constexpr) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    best = float("-inf")
    winner = tl.load(packed + 2 * row + 1)
    for rank in tl.static_range(RANKS):
        from_rank = packed + 2 * (rank * num_rows + row)
        value = tl.load(from_rank)
        index = tl.load(from_rank + 1)
        # As in the argmax of a part, a NaN is as large as infinity.
        value = tl.where(value != value, float("inf"), value)
        winner = tl.where(value > best, index, winner)
        best = tl.maximum(value, best)
    tl.store(out + row, winner.to(tl.int64))


def pack(part: Tensor, indices: Tensor, first: int) -> Tensor:
    """Return the numbers of ``part [..., n]`` at ``indices [...]``, each beside its index.

    The result is ``[..., 2]`` in float32. Indices are counted from ``first``.
    """
    rows = part.flatten(0, -2)
    assert rows.stride(1) == 1
    out = torch.empty(*indices.shape, 2, dtype=torch.float32, device=part.device)
    _pack_kernel[(len(rows),)](
        rows,
        indices.contiguous(),
        out,
        rows.stride(0),
        first,
        EARLY=early(part.device),
        num_warps=1,
        **launch_keywords(part.device),
    )
    return out


def winner(packed: Tensor) -> Tensor:
    """Return the index beside the largest number of ``packed [N, ..., 2]``, as ``[...]``.

    Of equal numbers, that of the lowest rank wins.
    """
    num_ranks, *shape, _ = packed.shape
    out = torch.empty(shape, dtype=torch.long, device=packed.device)
    _winner_kernel[(out.numel(),)](
        packed,
        out,
        out.numel(),
        RANKS=num_ranks,
        EARLY=early(packed.device),
        num_warps=1,
        **launch_keywords(packed.device),
    )
    return out
