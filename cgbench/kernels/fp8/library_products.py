"""Multiply many quantised rows by FP8 weights through torch's own product with scales of blocks.

It is cuBLAS's, and sums in float32 past every 128 columns, as ``token_values`` defines it. At 256
rows it takes 0.6 to 0.8 of a bfloat16 product's time on an H200, where our own kernel takes 2.3 to
3.3 of it. Source: results/h200/fp8-w8a8.md.
"""

import functools

import torch
from torch import Tensor

from cgbench.kernels.fp8.triton_tokens import quantised_tokens
from cgbench.kernels.gpu import HOPPER

BLOCK = 128
LEAST_ROWS = 48
"""Fewer are bound by the weights' bytes, which our own kernel reads as fast."""

_ROW_MULTIPLE = 16
_SCALES_A_LINE = 4
"""cuBLAS wants this many scales of columns, or a multiple. Releases of torch differ in how others
are padded.
"""

_LEAST_CUDA = (12, 9)


def can_multiply(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> bool:
    """Return whether ``multiply`` takes ``x [..., K]``, ``weight [N, K]`` and ``scale [R, C]``."""
    num_rows = x.numel() // max(1, x.shape[-1])
    return (
        bias is None
        and x.dtype == torch.bfloat16
        and weight.is_contiguous()
        and fits(num_rows, tuple(weight.shape), tuple(scale.shape))
        and _has_product(x.device)
    )


def fits(num_rows: int, weight: tuple[int, ...], scale: tuple[int, ...]) -> bool:
    """Return whether the sizes are those that torch's product takes.

    A matrix of several parts has no more scales than ``N / 128`` if every part is of whole blocks.
    """
    num_outputs, num_inputs = weight
    return (
        num_rows >= LEAST_ROWS
        and num_rows % _ROW_MULTIPLE == 0
        and num_outputs % BLOCK == 0
        and num_inputs % (BLOCK * _SCALES_A_LINE) == 0
        and scale == (num_outputs // BLOCK, num_inputs // BLOCK)
    )


@functools.cache
def _has_product(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    major, minor = map(int, torch.version.cuda.split(".")[:2])
    is_hopper = torch.cuda.get_device_capability(device) == HOPPER
    return is_hopper and (major, minor) >= _LEAST_CUDA


def multiply(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return the product of the quantised ``x [..., K]`` and ``weight [N, K]``, ``[..., N]``."""
    rows = quantised_tokens(x.reshape(-1, x.shape[-1]), scale.shape[1], by_column=True)
    out = torch._scaled_mm(
        rows.stored, weight.t(), rows.scales, scale.t(), out_dtype=torch.bfloat16
    )
    return out.view(*x.shape[:-1], weight.shape[0])
