"""Write rows as sums of two FP8 numbers (e4m3) in Triton, and add their two products.

A number of bfloat16 has 8 significant bits, and e4m3 has 4. So a number is one e4m3 number and a
rest that another holds. The FP8 tensor cores multiply both by FP8 weights as these are stored, at
twice the rate of bfloat16. No weight is converted.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.fp8.block_scales import FP8
from cgbench.kernels.fp8.triton_kv import nearest_values
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.triton_gate import gated_product

COLUMNS_A_SCALE = 128
ROWS_A_PROGRAM = 8
COLUMNS_A_PROGRAM = 1024

ROW_MULTIPLE = 8
"""Both halves together are a multiple of 16 rows, which torch's product wants."""

_MORE_BITS = tl.constexpr(4)
_REST_FACTOR = tl.constexpr(2.0**4)
"""The rest of a rounded number is at most ``2 ** -4`` of it."""

_LARGEST_FLOAT32 = tl.constexpr(torch.finfo(torch.float32).max)


class Pairs(NamedTuple):
    """Pairs are ``stored [2 M, K]`` in e4m3, with float32 ``scales [2 M, K / 128]``.

    Row ``m`` is the sum of the values of rows ``m`` and ``M + m``. ``M`` is padded to a multiple of
    8, and padded rows hold nothing that is read. The scales of a column are neighbours. ``laid`` is
    a copy of the weight's scales whose rows have another pitch, or None.
    """

    stored: Tensor
    scales: Tensor
    laid: Tensor | None


@triton.jit(do_not_specialize=["num_rows", "padded_rows"])  # type: ignore[untyped-decorator]
def _pairs_kernel(
    x,
    stored,
    scales,
    weight_scale,
    laid,
    num_rows,
    padded_rows,
    num_inputs,
    x_stride,
    num_scale_rows,
    pitch,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Write the pairs of a block of columns, and lay that block's scales of the weight."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    if SCALE_ROWS > 0:
        if tl.program_id(0) == 0:
            r = tl.arange(0, SCALE_ROWS)
            to_laid = laid + r * pitch + tl.program_id(1)
            from_scale = weight_scale + r * tl.num_programs(1) + tl.program_id(1)
            keep = r < num_scale_rows
            tl.store(to_laid, tl.load(from_scale, mask=keep, other=0.0), mask=keep)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    is_row = m < num_rows
    wide_m = m.to(tl.int64)
    rows = tl.load(x + wide_m[:, None] * x_stride + k[None, :], mask=is_row[:, None], other=0.0).to(
        tl.float32
    )
    sizes = tl.abs(rows)
    largest = tl.max(sizes, 1)
    is_odd = tl.max((~(sizes <= _LARGEST_FLOAT32)).to(tl.int32), 1)
    # The power of two that brings the largest number to above 224 and to 448 at most, which is
    # e4m3's largest. It is 1.75 times a power of two, so a larger mantissa takes the next one.
    exponent = (largest.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23
    power = tl.maximum(exponent - 8, 1 + _MORE_BITS)
    inverse = ((254 - power) << 23).to(tl.float32, bitcast=True)
    scale = (power << 23).to(tl.float32, bitcast=True)
    rest_scale = ((power - _MORE_BITS) << 23).to(tl.float32, bitcast=True)
    scaled = rows * inverse[:, None]
    nearest = nearest_values(scaled)
    rest = nearest_values((scaled - nearest) * _REST_FACTOR)
    to_stored = stored + wide_m[:, None] * num_inputs + k[None, :]
    to_scales = scales + tl.program_id(1).to(tl.int64) * 2 * padded_rows + m
    tl.store(to_stored, nearest.to(tl.float8e4nv), mask=is_row[:, None])
    to_rest = to_stored + padded_rows.to(tl.int64) * num_inputs
    tl.store(to_rest, rest.to(tl.float8e4nv), mask=is_row[:, None])
    # What is not finite stays no number, so that nothing hides it.
    scale = tl.where(is_odd > 0, float("nan"), scale)
    tl.store(to_scales, scale, mask=is_row)
    tl.store(to_scales + padded_rows, rest_scale, mask=is_row)


def pairs_of(x: Tensor, weight_scale: Tensor | None = None, pitch: int = 0) -> Pairs:
    """Return the pairs of ``x [M, K]`` in bfloat16, whose rows may lie apart.

    ``K`` is a multiple of 128. Numbers down to ``2 ** -13`` of the largest of their 128 columns are
    exact. What is smaller is wrong by ``2 ** -21`` of that at most. If ``weight_scale [R, C]`` is
    given, it is copied on the way, to rows that are ``pitch`` numbers apart.
    """
    num_rows, num_inputs = x.shape
    num_blocks = num_inputs // COLUMNS_A_SCALE
    assert x.stride(1) == 1 and num_inputs == num_blocks * COLUMNS_A_SCALE
    assert weight_scale is None or weight_scale.is_contiguous()
    padded = triton.cdiv(num_rows, ROW_MULTIPLE) * ROW_MULTIPLE
    stored = torch.empty(2 * padded, num_inputs, dtype=FP8, device=x.device)
    scales = torch.empty(num_blocks, 2 * padded, dtype=torch.float32, device=x.device)
    scale_rows = 0 if weight_scale is None else weight_scale.shape[0]
    laid = None if weight_scale is None else weight_scale.new_empty(scale_rows, pitch)
    _pairs_kernel[(triton.cdiv(num_rows, ROWS_A_PROGRAM), num_blocks)](
        x,
        stored,
        scales,
        weight_scale,
        laid,
        num_rows,
        padded,
        num_inputs,
        x.stride(0),
        scale_rows,
        pitch,
        BLOCK_M=ROWS_A_PROGRAM,
        BLOCK_K=COLUMNS_A_SCALE,
        SCALE_ROWS=triton.next_power_of_2(scale_rows) if scale_rows else 0,
        EARLY=early(x.device),
        num_warps=4,
        **launch_keywords(x.device),
    )
    return Pairs(stored, scales.t(), laid)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of(parts, bias, second, place, column, keep, out_type, HAS_BIAS: tl.constexpr):
    total = tl.load(parts + place, mask=keep, other=0.0)
    total += tl.load(parts + second + place, mask=keep, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=keep, other=0.0).to(tl.float32)
    return total.to(out_type)


@triton.jit(do_not_specialize=["padded_rows"])  # type: ignore[untyped-decorator]
def _sums_kernel(
    parts,
    bias,
    residual,
    out,
    padded_rows,
    num_columns,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = column < num_columns
    width = 2 * num_columns if IS_GATED else num_columns
    second = padded_rows.to(tl.int64) * width
    place = row * width + column
    out_type: tl.constexpr = out.dtype.element_ty
    product = _sum_of(parts, bias, second, place, column, keep, out_type, HAS_BIAS)
    if IS_GATED:
        place, above = place + num_columns, column + num_columns
        up = _sum_of(parts, bias, second, place, above, keep, out_type, HAS_BIAS)
        product = gated_product(product, up)
    to_out = row * num_columns + column
    if HAS_RESIDUAL:
        added = tl.load(residual + to_out, mask=keep, other=0.0)
        product = (product.to(tl.float32) + added.to(tl.float32)).to(out_type)
    tl.store(out + to_out, product, mask=keep)


def sums_of(
    parts: Tensor,
    num_rows: int,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    residual: Tensor | None = None,
    is_gated: bool = False,
) -> Tensor:
    """Return the product ``[num_rows, N]`` whose halves are ``parts [2 M, N]`` in float32.

    At most one of two ends follows, as in ``triton_linear.linear``: ``residual`` is added, or with
    ``is_gated`` the activation of the product's halves is returned, ``[num_rows, N / 2]``.
    """
    padded, num_columns = parts.shape[0] // 2, parts.shape[1] // (1 + is_gated)
    assert parts.is_contiguous() and not (is_gated and residual is not None)
    if residual is not None:
        residual = residual.reshape(num_rows, num_columns).contiguous()
    out = torch.empty(num_rows, num_columns, dtype=dtype, device=parts.device)
    _sums_kernel[(num_rows, triton.cdiv(num_columns, COLUMNS_A_PROGRAM))](
        parts,
        bias,
        residual,
        out,
        padded,
        num_columns,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        IS_GATED=is_gated,
        BLOCK=COLUMNS_A_PROGRAM,
        EARLY=early(parts.device),
        **launch_keywords(parts.device),
    )
    return out
