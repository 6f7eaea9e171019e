"""Define the values of FP8 weights (e4m3), which have scales.

A weight ``[..., N, K]`` has scales ``[..., R, C]`` in float32. Row ``n`` reads their row
``row_blocks[n]``. Column ``k`` reads column ``k // column_block(K, C)``. One form serves scales of
a tensor (R = C = 1), of an output channel (R = N, C = 1) and of blocks. A part of a weight that
cuts a block keeps that block's scale.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max

# At most this many elements are in float32 at once.
_MOST_ELEMENTS = 1 << 25


def column_block(num_inputs: int, num_blocks: int) -> int:
    """Return how many columns one of ``num_blocks`` scales is for.

    It is the power of two that makes as many blocks of ``num_inputs`` columns. The last block may
    be a part.
    """
    block = 1
    while -(-num_inputs // block) > num_blocks:
        block *= 2
    return block


def row_blocks_of(num_rows: int, num_blocks: int, num_parts: int = 1) -> Tensor:
    """Return the row of scales that each row of weights reads, ``[num_rows]``.

    The weights are ``num_parts`` matrices one above another.
    """
    rows, blocks = num_rows // num_parts, num_blocks // num_parts
    first = torch.arange(num_parts, dtype=torch.int32)[:, None] * blocks
    of_part = torch.arange(rows, dtype=torch.int32) // column_block(rows, blocks)
    return (first + of_part).flatten()


def dequantised(weight: Tensor, scale: Tensor, row_blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of ``weight [..., N, K]``, made in float32 and then rounded to
    ``dtype``."""
    if runs_kernels(weight.device):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels.fp8 import triton_values

        return triton_values.values_of(weight, scale, row_blocks, dtype)
    num_rows, num_inputs = weight.shape[-2:]
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    matrices = zip(
        out.view(-1, num_rows, num_inputs),
        weight.reshape(-1, num_rows, num_inputs),
        scale.reshape(-1, *scale.shape[-2:]),
        strict=True,
    )
    for values, stored, its in matrices:
        for rows in row_slices(num_rows, num_inputs):
            by_row = its.index_select(0, row_blocks[rows])
            values[rows] = stored[rows].float() * _by_column(by_row, num_inputs)
    return out


def _by_column(scale: Tensor, num_inputs: int) -> Tensor:
    block = column_block(num_inputs, scale.shape[1])
    return scale.repeat_interleave(block, dim=1)[:, :num_inputs]


def row_slices(num_rows: int, num_inputs: int) -> Iterator[slice]:
    """Yield the rows of a weight in parts whose values may be in float32 at once."""
    step = max(1, _MOST_ELEMENTS // max(1, num_inputs))
    return (slice(first, first + step) for first in range(0, num_rows, step))


def has_nan_codes(weight: Tensor) -> bool:
    """Return whether an FP8 ``weight`` holds a code that is no number, 0x7f or 0xff.

    It compares bytes, a slice at a time.
    """
    codes = weight.reshape(-1).view(torch.uint8)
    return any(bool(((part & 0x7F) == 0x7F).any()) for part in codes.split(_MOST_ELEMENTS))


def column_part(scale: Tensor, num_inputs: int, first: int, size: int) -> Tensor:
    """Return the scales of columns ``first`` to ``first + size`` of a weight.

    The weight has ``num_inputs`` columns. If the cut goes through a block, the scales are repeated
    for blocks of half the size, or a quarter, until it goes through none. So each part keeps the
    scale of its block.
    """
    block = column_block(num_inputs, scale.shape[-1])
    if scale.shape[-1] == 1:
        return scale.contiguous()
    fine = block
    while first % fine:
        fine //= 2
    repeated = scale.repeat_interleave(block // fine, dim=-1)
    return repeated[..., first // fine : -(-(first + size) // fine)].contiguous()


def quantised(values: Tensor, block: int = 128) -> tuple[Tensor, Tensor]:
    """Return ``values [..., N, K]`` in FP8, and the scales of its blocks.

    Each block's largest value becomes FP8's largest. A block of zeros has scale 1.
    """
    num_rows, num_inputs = values.shape[-2:]
    padded = F.pad(values.float(), (0, -num_inputs % block, 0, -num_rows % block))
    blocks = padded.unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    largest = blocks.abs().amax(dim=(-3, -1))
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)
    stored = (blocks / scale[..., :, None, :, None]).to(FP8)
    whole = stored.flatten(-2).flatten(-3, -2)
    return whole[..., :num_rows, :num_inputs].contiguous(), scale
