"""Define the root-mean-square norm in torch, and choose ``triton_norm`` on a GPU."""

import torch
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels


def norm(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """Return the root-mean-square norm of ``x [..., K]``, multiplied by ``weight + offset``."""
    if runs_kernels(x.device):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels import triton_norm

        return triton_norm.norm(x, triton_norm.Norm(weight, epsilon, offset))
    return normed(x, weight, epsilon, offset)


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, offset: float
) -> tuple[Tensor, Tensor]:
    """Return ``x + residual``, and ``norm`` of that sum."""
    if runs_kernels(x.device):
        from cgbench.kernels import triton_norm

        return triton_norm.add_norm(x, residual, triton_norm.Norm(weight, epsilon, offset))
    total = x + residual
    return total, normed(total, weight, epsilon, offset)


def normed(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """Compute ``norm`` in torch's operations, which define it.

    It rounds where transformers' modules do: as Llama's without an offset, as Gemma's with one.
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if offset:
        return (normed * (weight.float() + offset)).to(x.dtype)
    return normed.to(x.dtype) * weight
