"""Bring rows to float16 in Triton, each by a power of two, for products with FP8 weights.

One instruction of Hopper converts two FP8 numbers to float16, which holds them all. To bfloat16 it
takes eight for four. ``triton_kv`` has the rule, which attention applies to a tile.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.fp8.triton_kv import factors_to_float16
from cgbench.kernels.gpu import early, launch_keywords

COLUMNS_A_STEP = 2048


class HalfRows(NamedTuple):
    """Half rows are ``values [M, K]`` in float16, and ``factors [M]`` that undo their scaling."""

    values: Tensor
    factors: Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _halves_kernel(
    x, values, factors, num_inputs, x_stride, BLOCK_K: tl.constexpr, EARLY: tl.constexpr
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    m = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    from_x, to_values = x + m[:, None] * x_stride, values + m[:, None] * num_inputs
    largest = tl.zeros([1, BLOCK_K], tl.float32)
    for k0 in range(0, num_inputs, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)[None, :]
        row = tl.load(from_x + k, mask=k < num_inputs, other=0.0)
        largest = tl.maximum(largest, tl.abs(row.to(tl.float32)))
    factor, undone = factors_to_float16(tl.max(largest, 1))
    for k0 in range(0, num_inputs, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)[None, :]
        row = tl.load(from_x + k, mask=k < num_inputs, other=0.0)
        half = (row.to(tl.float32) * factor[:, None]).to(tl.float16)
        tl.store(to_values + k, half, mask=k < num_inputs)
    tl.store(factors + m, undone)


def half_rows(x: Tensor) -> HalfRows:
    """Return ``x [M, K]`` in float16. Its rows may lie apart.

    Numbers of bfloat16 stay exact down to ``2 ** -28`` of their row's largest. What is smaller is
    wrong by ``2 ** -39`` of that at most.
    """
    num_rows, num_inputs = x.shape
    assert x.stride(1) == 1
    values = torch.empty(num_rows, num_inputs, dtype=torch.float16, device=x.device)
    factors = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    _halves_kernel[(num_rows,)](
        x,
        values,
        factors,
        num_inputs,
        x.stride(0),
        BLOCK_K=min(COLUMNS_A_STEP, triton.next_power_of_2(num_inputs)),
        EARLY=early(x.device),
        num_warps=4,
        **launch_keywords(x.device),
    )
    return HalfRows(values, factors)
