"""Read and make FP8 keys and values in Triton, as ``kv_values`` defines them.

Products are of float16 numbers, which hold every FP8 value (e4m3). On Hopper one instruction
converts two values to float16. To bfloat16 the compiler's way ends in one at an eighth of the rate,
and moving bits takes five instructions for two values.
"""

import triton
import triton.language as tl

from cgbench.kernels.fp8.block_scales import LARGEST
from cgbench.kernels.fp8.kv_values import LEAST_SCALE

# Whose scale a key or value has: nobody's, its head's and token's, or its layer's.
UNSCALED = tl.constexpr(0)
BY_TOKEN = tl.constexpr(1)
BY_TENSOR = tl.constexpr(2)

_LARGEST = tl.constexpr(LARGEST)
_LEAST_SCALE = tl.constexpr(LEAST_SCALE)

# The first maximum of a row with a sink is so much below the sink. Weights below the maximum lose
# bits in float16, and a sink has no value that they would be compared with.
FLOAT16_SHIFT = tl.constexpr(24)

_TO_HALVES = tl.constexpr("""{
.reg .b16 low, high;
mov.b32 {low, high}, $2;
cvt.rn.f16x2.e4m3x2 $0, low;
cvt.rn.f16x2.e4m3x2 $1, high;
}""")


@triton.jit
def factors_to_float16(largest):
    """Return the powers of two that bring rows to float16, and those that undo it.

    A row's ``largest`` element becomes ``2 ** 14`` to below ``2 ** 15``.
    """
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    # Between the exponents of 2 ** -126 and 2 ** 126, so that the factor and its inverse exist.
    power = tl.minimum(tl.maximum(127 + 14 + 127 - exponent, 1), 253)
    factor = (power << 23).to(tl.float32, bitcast=True)
    return factor, ((254 - power) << 23).to(tl.float32, bitcast=True)


@triton.jit
def in_float16(rows):
    """Return ``rows [M, D]`` in float16, and the factors ``[M]`` that undo their scaling.

    Each row is multiplied by the power of two that makes its largest element as large as float16
    allows. So numbers of bfloat16 stay exact down to ``2 ** -28`` of the row's largest. What is
    smaller is wrong by ``2 ** -39`` of that at most, less than a float32 sum rounds.
    """
    factor, undone = factors_to_float16(tl.max(tl.abs(rows.to(tl.float32)), 1))
    return (rows.to(tl.float32) * factor[:, None]).to(tl.float16), undone


@triton.jit  # type: ignore[untyped-decorator]
def keys_in(stored, dtype: tl.constexpr):
    """Return FP8 keys in ``dtype``, which holds them all."""
    return stored.to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def values_in(stored, dtype: tl.constexpr):
    """Return FP8 values in ``dtype``, which holds them all.

    A product reads pairs of neighbouring tokens. Of bytes it would gather them one by one. So
    values are converted as they lie, by an operation that the compiler may not move. The hardware
    transposes numbers of 16 bits.
    """
    if dtype == tl.float16:
        return tl.inline_asm_elementwise(
            _TO_HALVES,
            "=r,=r,r",
            [stored.to(tl.int8, bitcast=True)],
            dtype=tl.float16,
            is_pure=False,
            pack=4,
        )
    else:
        return stored.to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def scales_of_keys(pointers, live, SCALING: tl.constexpr):
    """Return the scales ``[N]`` of a tile of keys, or one if they have none of their own."""
    if SCALING == BY_TOKEN:
        return tl.load(pointers, mask=live, other=1.0)
    else:
        return 1.0


@triton.jit
def parts_of_scale(scale):
    """Return the exponent of each scale, two to its negative, and the rest, which is 1 to below 2.
    All three are exact."""
    bits = scale.to(tl.int32, bitcast=True)
    exponent = bits >> 23
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    rest = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    return (exponent - 127).to(tl.float32), inverse, rest


@triton.jit  # type: ignore[untyped-decorator]
def rows_scale(rows, of_tensor, AXIS: tl.constexpr, SCALING: tl.constexpr):
    """Return the scales of new ``rows``, whose elements lie along ``AXIS``.

    A row's largest element becomes FP8's largest. A scale of the whole tensor is read at
    ``of_tensor``.
    """
    largest = tl.max(tl.abs(rows.to(tl.float32)), AXIS)
    if SCALING == BY_TENSOR:
        return tl.zeros_like(largest) + tl.load(of_tensor)
    else:
        scale = tl.div_rn(largest, tl.zeros_like(largest) + _LARGEST)
        return tl.maximum(scale, _LEAST_SCALE)


@triton.jit
def nearest_values(scaled):
    """Return the numbers of e4m3 that are nearest to float32 ``scaled``, in float32.

    What is too large is clamped. What is no number stays none, so that nothing hides it. Numbers
    are rounded in float32, to even where two are as near. So a conversion of them is exact, and the
    interpreter's, which rounds otherwise, gives the same bits.
    """
    scaled = tl.clamp(scaled, -_LARGEST, _LARGEST, propagate_nan=tl.PropagateNan.ALL)
    exponent = (scaled.to(tl.int32, bitcast=True) >> 23) & 255
    # Half as much again as 2 ** 23 steps of e4m3, which has 3 bits below an exponent of at least
    # -6. A sum with it has no bits below a step.
    power = tl.maximum(exponent, 127 - 6) - 3 + 23
    steps = ((power << 23) | (1 << 22)).to(tl.float32, bitcast=True)
    return (scaled + steps) - steps


@triton.jit
def quantised_tile(rows, scale):
    """Return ``rows`` over ``scale`` in FP8, as ``nearest_values`` has them."""
    rows = rows.to(tl.float32)
    return nearest_values(tl.div_rn(rows, tl.zeros_like(rows) + scale)).to(tl.float8e4nv)
