"""Multiply many rows by FP8 weights through torch's own product with scales of blocks.

It is cuBLAS's, and sums in float32 past every 128 columns, as ``token_values`` defines it. At 256
rows it takes 0.6 to 0.8 of a bfloat16 product's time on an H200, where our own kernel takes 2.3 to
3.3 of it. Source: results/h200/fp8-w8a8.md.

Rows that are quantised (W8A8) go through it as they are. Rows in bfloat16 (W8A16) go through it as
two FP8 numbers each (``triton_pairs``), so twice as many. A sum of 128 products keeps about 14 bits
in the tensor cores. Beside the one rounding to bfloat16 that cannot be seen: see the errors in
results/h200/fp8.md.
"""

import functools
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.block_scales import FP8
from cgbench.kernels.fp8.triton_pairs import pairs_of, sums_of
from cgbench.kernels.fp8.triton_tokens import quantised_tokens
from cgbench.kernels.gpu import HOPPER

BLOCK = 128
LEAST_ROWS = 48
"""Fewer are bound by the weights' bytes, which our own kernel reads as fast."""

LEAST_PAIR_ROWS = 65
"""Up to 64 rows in bfloat16 are multiplied as fast by weights that become bfloat16 in registers."""

LEAST_PAIR_ROWS_OF_WIDE = 33
WIDE_OUTPUTS = 7168
"""The library's tiles of so many outputs fill the device, so fewer rows are worth it.

Source: results/h200/fp8.md.
"""

MOST_PAIR_ROWS = 512
"""More rows are bound by arithmetic. Making the weights' values costs less than rows twice."""

_ROW_MULTIPLE = 16
_SCALES_A_LINE = 4
"""cuBLAS reads rows of scales whose pitch is a multiple of this."""

_LEAST_CUDA = (12, 9)


def can_multiply(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> bool:
    """Return whether ``multiply`` takes ``x [..., K]``, ``weight [N, K]`` and ``scale [R, C]``."""
    num_rows = x.numel() // max(1, x.shape[-1])
    return (
        bias is None
        and num_rows >= LEAST_ROWS
        and num_rows % _ROW_MULTIPLE == 0
        and _takes(x, weight, scale)
    )


def can_multiply_pairs(x: Tensor, weight: Tensor, scale: Tensor) -> bool:
    """Return whether ``multiply_pairs`` takes the same, and is faster than other ways."""
    num_rows = x.numel() // max(1, x.shape[-1])
    least = LEAST_PAIR_ROWS_OF_WIDE if len(weight) >= WIDE_OUTPUTS else LEAST_PAIR_ROWS
    return least <= num_rows <= MOST_PAIR_ROWS and _takes(x, weight, scale)


def _takes(x: Tensor, weight: Tensor, scale: Tensor) -> bool:
    return (
        x.dtype == torch.bfloat16
        and weight.is_contiguous()
        and fits(tuple(weight.shape), tuple(scale.shape))
        and _has_product(x.device)
        and (scale.shape[1] % _SCALES_A_LINE == 0 or _stated_pitch(x.device) is not None)
    )


def fits(weight: tuple[int, ...], scale: tuple[int, ...]) -> bool:
    """Return whether the sizes are those that torch's product takes.

    A matrix of several parts has no more scales than ``N / 128`` if every part is of whole blocks.
    With one block of columns the scales could be those of parts or of channels, so it is no fit.
    """
    num_outputs, num_inputs = weight
    return (
        num_outputs % BLOCK == 0
        and num_inputs % BLOCK == 0
        and num_inputs > BLOCK
        and scale == (num_outputs // BLOCK, num_inputs // BLOCK)
    )


@functools.cache
def _has_product(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    major, minor = map(int, torch.version.cuda.split(".")[:2])
    is_hopper = torch.cuda.get_device_capability(device) == HOPPER
    return is_hopper and (major, minor) >= _LEAST_CUDA


class _Pitch(StrEnum):
    """The pitch that torch's check asks of scales whose rows are padded. cuBLAS reads padded
    rows."""

    PADDED = "padded"
    COLUMNS = "columns"


@functools.cache
def _stated_pitch(device: torch.device) -> _Pitch | None:
    """Return the pitch under which this release of torch takes padded scales, or None.

    Releases differ. So a product whose result is known is tried. It happens once, in a warm-up,
    because it waits for the device.
    """
    scale = torch.arange(12, dtype=torch.float32, device=device).view(2, 6)
    ones = torch.ones(2 * BLOCK, 6 * BLOCK, device=device).to(FP8)
    row_scales = torch.ones(6, _ROW_MULTIPLE, device=device).t()
    expected = (BLOCK * scale.sum(1)).repeat_interleave(BLOCK)
    for pitch in _Pitch:
        laid = F.pad(scale, (0, _padded(6) - 6))
        try:
            out = _product(ones[:_ROW_MULTIPLE], ones, row_scales, _viewed(laid, 6, pitch))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            continue
        if bool((out == expected).all()):
            return pitch
    return None


def _padded(num_scales: int) -> int:
    return -(-num_scales // _SCALES_A_LINE) * _SCALES_A_LINE


def _viewed(laid: Tensor, num_scales: int, pitch: _Pitch) -> Tensor:
    """Return ``laid [R, padded C]`` as ``[C, R]``, with the pitch that torch's check asks."""
    stated = laid.shape[1] if pitch is _Pitch.PADDED else num_scales
    return laid.as_strided((num_scales, laid.shape[0]), (1, stated))


def _product(
    rows: Tensor,
    weight: Tensor,
    row_scales: Tensor,
    scales: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return torch._scaled_mm(rows, weight.t(), row_scales, scales, out_dtype=dtype)


def multiply(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return the product of the quantised ``x [..., K]`` and ``weight [N, K]``, ``[..., N]``."""
    num_scales = scale.shape[1]
    rows = quantised_tokens(x.reshape(-1, x.shape[-1]), num_scales, by_column=True)
    scales = scale.t()
    if num_scales % _SCALES_A_LINE and (pitch := _stated_pitch(x.device)):
        laid = F.pad(scale, (0, _padded(num_scales) - num_scales))
        scales = _viewed(laid, num_scales, pitch)
    out = _product(rows.stored, weight, rows.scales, scales, torch.bfloat16)
    return out.view(*x.shape[:-1], weight.shape[0])


def multiply_pairs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    *,
    residual: Tensor | None = None,
    is_gated: bool = False,
) -> Tensor:
    """Return the product of ``x [..., K]`` and the values of ``weight [N, K]``, ``[..., N]``.

    ``residual`` and ``is_gated`` are the ends of ``triton_linear.linear``.
    """
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    num_scales = scale.shape[1]
    scales = scale.t()
    if num_scales % _SCALES_A_LINE and (pitch := _stated_pitch(x.device)):
        pairs = pairs_of(rows, scale, _padded(num_scales))
        assert pairs.laid is not None
        scales = _viewed(pairs.laid, num_scales, pitch)
    else:
        pairs = pairs_of(rows)
    parts = _product(pairs.stored, weight, pairs.scales, scales)
    out = sums_of(parts, len(rows), bias, x.dtype, residual=residual, is_gated=is_gated)
    return out.view(*x.shape[:-1], out.shape[1])
