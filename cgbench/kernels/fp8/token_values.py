"""Define how activations are quantised to FP8 (e4m3) for products with FP8 weights (W8A8).

Each token has a scale in float32 for every block of columns that the weight has a scale for, as
engines have it: 128 columns of a weight in blocks of 128 x 128, and all columns of a weight with
scales of channels or of the whole tensor. A scale is the largest element of its columns over 448,
as for keys and values (``kv_values``). A rank that holds a part of a block quantises its part.

The product is that of the values, which are e4m3 numbers times their scales. A kernel sums products
of e4m3 numbers over the columns of one scale, 128 at most, then multiplies the sum by both scales
and adds it to a float32 sum. Tensor cores alone would keep about 14 bits of a sum.
Source: DeepSeek-V3's report, section 3.3.2.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.fp8.block_scales import column_block
from cgbench.kernels.fp8.kv_values import quantised_rows, row_scales

LEAST_COLUMNS = 16
"""A kernel takes scales of at least this many columns. Fewer are no tile."""


class QuantisedTokens(NamedTuple):
    """Quantised tokens are ``stored [..., K]`` in e4m3 with ``scales [..., C]`` in float32.

    Column ``k`` has the scale ``k // column_block(K, C)``.
    """

    stored: Tensor
    scales: Tensor


def quantised_tokens(x: Tensor, num_blocks: int) -> QuantisedTokens:
    """Quantise ``x [..., K]`` by ``num_blocks`` blocks of columns. The last one may be a part."""
    num_inputs = x.shape[-1]
    columns = _columns(num_inputs, num_blocks)
    blocks = F.pad(x.float(), (0, num_blocks * columns - num_inputs)).unflatten(-1, (-1, columns))
    scales = row_scales(blocks)
    stored = quantised_rows(blocks, scales).flatten(-2)[..., :num_inputs]
    return QuantisedTokens(stored.contiguous(), scales)


def token_values(x: Tensor, num_blocks: int) -> Tensor:
    """Return the values of ``quantised_tokens`` in float32."""
    stored, scales = quantised_tokens(x, num_blocks)
    columns = _columns(x.shape[-1], num_blocks)
    return stored.float() * scales.repeat_interleave(columns, dim=-1)[..., : x.shape[-1]]


def _columns(num_inputs: int, num_blocks: int) -> int:
    return min(num_inputs, column_block(num_inputs, num_blocks))
