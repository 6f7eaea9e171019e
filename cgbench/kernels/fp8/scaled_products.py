"""Define products with FP8 weights (e4m3): of activations as they are, and of quantised ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.block_scales import dequantised, row_slices
from cgbench.kernels.fp8.definition import is_by_definition
from cgbench.kernels.fp8.token_values import token_values


def scaled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    row_blocks: Tensor,
    is_w8a8: bool = False,
) -> Tensor:
    """Compute ``F.linear`` of ``x [..., K]`` and the values of ``weight [N, K]``.

    It takes a slice of rows at a time, so that no whole copy of a large weight is ever made. On a
    CPU, and inside ``by_definition``, values and sums are float32, rounded to ``x``'s dtype once.
    On CUDA the values are otherwise rounded to ``x``'s dtype first, because the library multiplies
    those many times faster.

    With ``is_w8a8`` the values of ``x`` quantised take its place. They are float32 everywhere.
    """
    is_rounded = x.is_cuda and not is_by_definition() and not is_w8a8
    dtype = x.dtype if is_rounded else torch.float32
    wide = token_values(x, scale.shape[-1]) if is_w8a8 else x.to(dtype)
    added = None if bias is None else bias.to(dtype)
    parts = [
        F.linear(
            wide,
            dequantised(weight[rows], scale, row_blocks[rows], dtype),
            None if added is None else added[rows],
        )
        for rows in row_slices(*weight.shape)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).to(x.dtype)
