"""Rotate a product's heads by rotary embedding, in Triton.

It is a part of the product. For more rows than the product streams, a kernel of its own rotates
queries and keys where they lie.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords

PAIRS_A_PROGRAM = 512


class Rotary(NamedTuple):
    """A rotary rotates the first ``num_columns`` columns of each row.

    They are heads whose halves turn against each other. ``cos`` and ``sin [..., D]`` are
    contiguous, with one row for each row of the product.
    """

    cos: Tensor
    sin: Tensor
    num_columns: int

    @property
    def size(self) -> int:
        """Return the size of a head, D."""
        return self.cos.shape[-1]


@triton.jit
def load_tables(cos, sin, tables, apart, keep):
    """Load the cosines and sines of both halves. Columns that are not rotated get angle 0."""
    cos_low = tl.load(cos + tables, mask=keep, other=1.0)
    cos_high = tl.load(cos + tables + apart, mask=keep, other=1.0)
    sin_low = tl.load(sin + tables, mask=keep, other=0.0)
    sin_high = tl.load(sin + tables + apart, mask=keep, other=0.0)
    return cos_low, cos_high, sin_low, sin_high


@triton.jit
def turned(low, high, cos_low, cos_high, sin_low, sin_high):
    """Return ``low`` and ``high`` turned against each other, rounded once."""
    a, b = low.to(tl.float32), high.to(tl.float32)
    turned_low = a * cos_low.to(tl.float32) - b * sin_low.to(tl.float32)
    turned_high = b * cos_high.to(tl.float32) + a * sin_high.to(tl.float32)
    return turned_low.to(low.dtype), turned_high.to(low.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_kernel(
    x, cos, sin, num_outputs, num_pairs, apart, BLOCK: tl.constexpr, EARLY: tl.constexpr
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = pair < num_pairs
    place = x + row * num_outputs + pair // apart * (2 * apart) + pair % apart
    low = tl.load(place, mask=keep)
    high = tl.load(place + apart, mask=keep)
    tables = row * (2 * apart) + pair % apart
    cos_low, cos_high, sin_low, sin_high = load_tables(cos, sin, tables, apart, keep)
    low, high = turned(low, high, cos_low, cos_high, sin_low, sin_high)
    tl.store(place, low, mask=keep)
    tl.store(place + apart, high, mask=keep)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate ``x [..., N]``, contiguous, in place, and return it."""
    rows = x.view(-1, x.shape[-1])
    pairs = rotary.num_columns // 2
    _rotate_kernel[(len(rows), triton.cdiv(pairs, PAIRS_A_PROGRAM))](
        rows,
        rotary.cos,
        rotary.sin,
        rows.shape[1],
        pairs,
        rotary.size // 2,
        BLOCK=PAIRS_A_PROGRAM,
        EARLY=early(x.device),
        **launch_keywords(x.device),
    )
    return x
