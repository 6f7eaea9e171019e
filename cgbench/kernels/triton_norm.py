"""Compute the root-mean-square norm of hidden states in Triton, with a residual's sum ahead of it.

A row is read once. Its gains are read before the kernel ahead has ended.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords


class Norm(NamedTuple):
    """A norm is ``x / sqrt(mean(x ** 2) + epsilon) * (weight + offset)``.

    The mean is over the last dimension of ``x``.
    """

    weight: Tensor
    epsilon: float
    offset: float


@triton.jit  # type: ignore[untyped-decorator]
def _norm_kernel(
    x,
    residual,
    weight,
    epsilon,
    total,
    out,
    num_columns,
    x_stride,
    residual_stride,
    HAS_RESIDUAL: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        # The next kernel is a product, which asks for its weights meanwhile.
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    keep = column < num_columns
    # Nothing writes it, so it may be read before the wait.
    gain = tl.load(weight + column, mask=keep, other=0.0, cache_modifier=".cg")
    if EARLY:
        gdc_wait()
    wide = tl.load(x + row * x_stride + column, mask=keep, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        added = tl.load(residual + row * residual_stride + column, mask=keep, other=0.0)
        # Rounded where torch's operations round, here and below.
        rounded = (wide + added.to(tl.float32)).to(out.dtype.element_ty)
        tl.store(total + row * num_columns + column, rounded, mask=keep)
        wide = rounded.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / num_columns + epsilon)
    if OFFSET == 0:
        normed = normed.to(out.dtype.element_ty).to(tl.float32)
    normed *= gain.to(tl.float32) + OFFSET
    tl.store(out + row * num_columns + column, normed.to(out.dtype.element_ty), mask=keep)


def norm(x: Tensor, how: Norm) -> Tensor:
    """Return the norm of ``x [..., K]``, contiguous."""
    return _launch(x, None, how)[1]


def add_norm(x: Tensor, residual: Tensor, how: Norm) -> tuple[Tensor, Tensor]:
    """Return ``x + residual``, both ``[..., K]``, and the norm of that sum. Both are contiguous."""
    return _launch(x, residual, how)


def _launch(x: Tensor, residual: Tensor | None, how: Norm) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    added = rows if residual is None else residual.reshape(rows.shape)
    assert rows.stride(1) == added.stride(1) == 1
    out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    total = out if residual is None else torch.empty_like(out)
    _norm_kernel[(len(rows),)](
        rows,
        added,
        how.weight,
        how.epsilon,
        total,
        out,
        rows.shape[1],
        rows.stride(0),
        added.stride(0),
        HAS_RESIDUAL=residual is not None,
        OFFSET=how.offset,
        BLOCK=triton.next_power_of_2(rows.shape[1]),
        EARLY=early(x.device),
        num_warps=8 if rows.shape[1] > 2048 else 4,
        **launch_keywords(x.device),
    )
    return total.view(x.shape), out.view(x.shape)
