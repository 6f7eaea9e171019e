"""Define the values of FP8 keys and values (e4m3), which have scales in float32.

A key or value of one head and token has a scale of its own, the largest of its elements over FP8's
largest. A checkpoint may state one for all keys of a layer, and one for all its values. Whatever
attends, prefill and the new rows of a call included, reads the stored values times their scales. So
text does not depend on how its tokens were divided into forwards.

This definition rounds each value to the query's dtype. The kernel (``triton_attention``) does not.
It multiplies the float32 scores and weights by the scales, and rounds a weight once, as over plain
values. So below float32 the kernel is the nearer one to the stored values.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cgbench.kernels.fp8.block_scales import FP8, LARGEST

LEAST_SCALE = 2.0**-64
"""The scale of a row of zeros. No scale is less, so that its inverse is a number too."""


class KvScales(NamedTuple):
    """The scales of one layer's keys and of its values, in float32.

    Each is ``[num_slots, kv_heads, room]``, or ``[1]`` if the checkpoint states one. Tokens are
    neighbours, because a program of the kernel reads one head's.
    """

    keys: Tensor
    values: Tensor

    @property
    def are_by_token(self) -> bool:
        """Return whether each head and token has its own."""
        return self.keys.dim() == 3


def row_scales(rows: Tensor) -> Tensor:
    """Return the scales ``[...]`` of ``rows [..., D]``."""
    largest = rows.float().abs().amax(-1)
    # On CUDA torch divides by a number through its inverse, which is another last bit.
    return (largest / torch.full_like(largest, LARGEST)).clamp(min=LEAST_SCALE)


def quantised_rows(rows: Tensor, scales: Tensor) -> Tensor:
    """Return ``rows [..., D]`` in FP8, of ``scales [...]`` or ``[1]``.

    Elements that are too large for the scale are clamped.
    """
    return (rows.float() / scales[..., None]).clamp(-LARGEST, LARGEST).to(FP8)


def row_values(stored: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of ``stored [..., D]``, made in float32 and then rounded to ``dtype``."""
    return (stored.float() * scales[..., None]).to(dtype)
