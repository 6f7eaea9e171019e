"""Compute linear layers together with what follows their product, and choose the kernel.

Torch's operations here are the definition. On CUDA a product of few rows of half precision is one
kernel, with its end (``triton_linear``). Of more rows the product is torch's, and the end is a
kernel of its own (``triton_gate``, ``triton_rotary``). Of more rows and FP8 weights it is torch's
too, of pairs of FP8 numbers (``fp8.library_products``).

A weight with ``scale`` and ``row_blocks`` is FP8: see ``fp8.block_scales``. Activations stay as
they are (weight-only, W8A16), or with ``is_w8a8`` are quantised first: see ``fp8.token_values``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels import library_rows
from cgbench.kernels.fp8.definition import is_by_definition
from cgbench.kernels.fp8.scaled_products import scaled_linear
from cgbench.kernels.gpu import runs_kernels


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    row_blocks: Tensor | None = None,
    is_w8a8: bool = False,
) -> Tensor:
    """Compute ``F.linear``, also of an FP8 weight.

    On CUDA, few rows of half precision go through the kernel made for them.
    """
    streamed = _streamed(x, weight, bias, scale, row_blocks, is_w8a8)
    return _product(x, weight, bias, scale, row_blocks, is_w8a8) if streamed is None else streamed


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    row_blocks: Tensor | None,
    is_w8a8: bool,
) -> Tensor:
    if scale is None or row_blocks is None:
        return library_rows.multiply(x, weight, bias) if x.is_cuda else F.linear(x, weight, bias)
    if is_w8a8 and _by_library(x, weight, bias, scale):
        from cgbench.kernels.fp8 import library_products

        return library_products.multiply(x, weight, scale)
    return scaled_linear(x, weight, bias, scale, row_blocks, is_w8a8)


def _by_library(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> bool:
    """Return whether torch multiplies these quantised rows faster than our own kernel."""
    if not runs_kernels(x.device) or is_by_definition():
        return False
    from cgbench.kernels.fp8 import library_products

    return library_products.can_multiply(x, weight, bias, scale)


def _streamed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    row_blocks: Tensor | None,
    is_w8a8: bool,
    **end: Any,
) -> Tensor | None:
    """Return the product by a kernel, or None if torch's operations must make it."""
    if scale is not None and is_by_definition():
        return None
    if is_w8a8 and scale is not None and _by_library(x, weight, bias, scale):
        return None
    return _by_kernel(x, weight, bias, scale, row_blocks, is_w8a8, **end)


def _by_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    row_blocks: Tensor | None,
    is_w8a8: bool,
    **end: Any,
) -> Tensor | None:
    """Return ``triton_linear.linear``, or None if it does not take these tensors."""
    if runs_kernels(x.device):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels import triton_linear
        from cgbench.kernels.fp8.library_products import can_multiply_pairs, multiply_pairs

        if scale is not None and not is_w8a8 and can_multiply_pairs(x, weight, scale):
            # Rows as pairs are added by a kernel that rotates nothing.
            return None if "rotary" in end else multiply_pairs(x, weight, bias, scale, **end)
        if triton_linear.can_stream(x, weight, scale, is_w8a8=is_w8a8):
            scales = None
            if scale is not None and row_blocks is not None:
                scales = triton_linear.Scales(scale, row_blocks, is_w8a8)
            return triton_linear.linear(x, weight, bias, scales=scales, **end)
    return None


def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    row_blocks: Tensor | None = None,
    is_w8a8: bool = False,
) -> Tensor:
    """Return ``silu(gate) * up`` of the two halves of ``linear``.

    It is rounded after each operation, as if they were apart.
    """
    streamed = _streamed(x, weight, bias, scale, row_blocks, is_w8a8, is_gated=True)
    if streamed is not None:
        return streamed
    product = _product(x, weight, bias, scale, row_blocks, is_w8a8)
    if runs_kernels(product.device):
        from cgbench.kernels import triton_gate

        return triton_gate.gated(product)
    gate, up = product.chunk(2, dim=-1)
    return F.silu(gate) * up


def linear_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    scale: Tensor | None = None,
    row_blocks: Tensor | None = None,
    is_w8a8: bool = False,
) -> Tensor:
    """Return ``residual + linear``. It is rounded after each operation, as if they were apart."""
    streamed = _streamed(x, weight, bias, scale, row_blocks, is_w8a8, residual=residual)
    if streamed is not None:
        return streamed
    return residual + _product(x, weight, bias, scale, row_blocks, is_w8a8)


def rotated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    num_rotated: int,
    scale: Tensor | None = None,
    row_blocks: Tensor | None = None,
    is_w8a8: bool = False,
) -> Tensor:
    """Return ``linear`` of ``x [B, S, K]`` with its first ``num_rotated`` columns rotated.

    They are rotated as heads, by ``cos`` and ``sin [B, S, D]``, halves against each other. On a CPU
    it is rounded after each operation, as if they were apart. On CUDA it is rounded after the
    product and at the end.
    """
    cos, sin = (each.expand(*x.shape[:-1], -1).contiguous() for each in (cos, sin))
    if runs_kernels(x.device):
        from cgbench.kernels import triton_rotary

        rotary = triton_rotary.Rotary(cos, sin, num_rotated)
        streamed = _streamed(x, weight, bias, scale, row_blocks, is_w8a8, rotary=rotary)
        if streamed is not None:
            return streamed
        return triton_rotary.rotate(linear(x, weight, bias, scale, row_blocks, is_w8a8), rotary)
    return _rotated(_product(x, weight, bias, scale, row_blocks, is_w8a8), cos, sin, num_rotated)


def _rotated(product: Tensor, cos: Tensor, sin: Tensor, num_rotated: int) -> Tensor:
    """Rotate in place, which defines ``triton_rotary.rotate``."""
    heads = product[..., :num_rotated].unflatten(-1, (-1, cos.shape[-1]))
    low, high = heads.chunk(2, dim=-1)
    across = torch.cat((-high, low), dim=-1)
    heads.copy_(heads * cos.unsqueeze(2) + across * sin.unsqueeze(2))
    return product
