"""Make latent attention's normed query, and normed and rotated latent, of its down projection.

DeepSeek's rotary pairs neighbours: columns 2 j and 2 j + 1 of what is rotated become columns j and
R / 2 + j. Torch's operations here are the definition, and what runs on a CPU. On CUDA the two norms
and the latent's rotary are one kernel (``triton_latent_rows``), where these would be three.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.norm import normed


class PairRotary(NamedTuple):
    """A ``PairRotary`` holds cosines and sines ``[B, S, R]``. Their first halves are read."""

    cos: Tensor
    sin: Tensor


class LatentNorms(NamedTuple):
    """A ``LatentNorms`` holds the gains and epsilons of two norms.

    They are the query's norm ``[q_rank]`` and the latent's ``[rank]``.
    """

    query_weight: Tensor
    query_epsilon: float
    latent_weight: Tensor
    latent_epsilon: float


def rotate_pairs(x: Tensor, rotary: PairRotary) -> Tensor:
    """Rotate neighbours of ``x [B, H, S, R]``, which come out as halves."""
    half = x.shape[-1] // 2
    cos, sin = rotary.cos[:, None, :, :half], rotary.sin[:, None, :, :half]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def latent_rows(x: Tensor, norms: LatentNorms, rotary: PairRotary) -> tuple[Tensor, Tensor]:
    """Norm both parts of ``x [B, S, q_rank + rank + R]``, and rotate the rest.

    Return the query's ``[B, S, q_rank]``, and the latents ``[B, 1, S, rank + R]``.
    """
    if runs_kernels(x.device):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels.mla import triton_latent_rows

        return triton_latent_rows.latent_rows(x, norms, rotary)
    return latent_rows_by_torch(x, norms, rotary)


def latent_rows_by_torch(
    x: Tensor, norms: LatentNorms, rotary: PairRotary
) -> tuple[Tensor, Tensor]:
    """Compute ``latent_rows`` in torch, as it is defined."""
    sizes = [len(norms.query_weight), len(norms.latent_weight)]
    query, latent, plain = x.split([*sizes, x.shape[-1] - sum(sizes)], dim=-1)
    content = normed(latent, norms.latent_weight, norms.latent_epsilon, 0.0)
    rotated = rotate_pairs(plain[:, None], rotary)
    return (
        normed(query, norms.query_weight, norms.query_epsilon, 0.0),
        torch.cat([content[:, None], rotated], dim=-1),
    )
