"""Compute the activation of a gated MLP, in Triton.

It is a part of the product that it follows. For more rows than the product streams it is a kernel
of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords

COLUMNS_A_PROGRAM = 1024


@triton.jit
def gated_product(gate, up):
    """Return ``silu(gate) * up``, rounded where torch's operations round."""
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    return (activated.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _gated_kernel(x, out, num_columns, BLOCK: tl.constexpr, EARLY: tl.constexpr) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = column < num_columns
    gate = tl.load(x + row * 2 * num_columns + column, mask=keep)
    up = tl.load(x + (row * 2 + 1) * num_columns + column, mask=keep)
    tl.store(out + row * num_columns + column, gated_product(gate, up), mask=keep)


def gated(x: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` of the halves of ``x [..., 2 K]``, as ``[..., K]``."""
    num_columns = x.shape[-1] // 2
    assert x.is_contiguous()
    out = torch.empty(*x.shape[:-1], num_columns, dtype=x.dtype, device=x.device)
    grid = (x.numel() // x.shape[-1], triton.cdiv(num_columns, COLUMNS_A_PROGRAM))
    _gated_kernel[grid](
        x,
        out,
        num_columns,
        BLOCK=COLUMNS_A_PROGRAM,
        EARLY=early(x.device),
        **launch_keywords(x.device),
    )
    return out
