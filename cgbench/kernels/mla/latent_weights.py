"""This is the matrix that expands latents to keys and values, and its two halves.

A latent attention layer stores one latent a token. Its ``kv_b_proj`` expands that to each head's
key and value. Absorbed, the key half (W_UK) multiplies the query, and the value half (W_UV)
multiplies what attention returns (DeepSeek-V2, section 2.1.2). No key or value is ever made then.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cgbench.kernels.fp8.block_scales import dequantised
from cgbench.kernels.fp8.definition import is_by_definition


class LatentWeights(NamedTuple):
    """A ``LatentWeights`` holds the matrix that expands latents to keys and values.

    ``weight [heads * (key_size + value_size), rank]`` has a head's key rows, then its value rows.
    ``key_size`` counts a key's values without rotary. ``scale`` and ``row_blocks`` are an FP8
    weight's, as ``kernels.fp8.block_scales`` has them.
    """

    weight: Tensor
    key_size: int
    value_size: int
    scale: Tensor | None = None
    row_blocks: Tensor | None = None

    @property
    def rank(self) -> int:
        """Return how many values one latent has, without its rotary key."""
        return self.weight.shape[1]

    @property
    def head_rows(self) -> int:
        """Return how many rows of the weight belong to one head."""
        return self.key_size + self.value_size

    @property
    def num_heads(self) -> int:
        """Return how many heads this rank holds."""
        return self.weight.shape[0] // self.head_rows

    def heads(self, first: int, end: int) -> "LatentWeights":
        """Return the weights of heads ``first`` to ``end``, as views."""
        rows = slice(first * self.head_rows, end * self.head_rows)
        blocks = None if self.row_blocks is None else self.row_blocks[rows]
        return self._replace(weight=self.weight[rows], row_blocks=blocks)

    def by_head(self, dtype: torch.dtype) -> Tensor:
        """Return the values of all heads, ``[heads, key_size + value_size, rank]``.

        Those of an FP8 weight are made anew in each call.
        """
        values = self.weight
        if self.scale is not None and self.row_blocks is not None:
            values = dequantised(self.weight, self.scale, self.row_blocks, dtype)
        return values.view(-1, self.head_rows, self.rank)

    def working_dtype(self, x: Tensor) -> torch.dtype:
        """Return the type that a product of ``x`` with these weights is computed in.

        As in ``fp8.scaled_products``: FP8 weights multiply in float32, except on CUDA.
        """
        if self.scale is None or (x.is_cuda and not is_by_definition()):
            return x.dtype
        return torch.float32
