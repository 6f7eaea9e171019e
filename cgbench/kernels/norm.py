"""The root-mean-square norm: its definition in torch, and the choice of ``triton_norm``."""

import torch
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels


def norm(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """The root-mean-square norm of ``x [..., K]`` by ``weight + offset``."""
    if runs_kernels(x.device):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels import triton_norm

        return triton_norm.norm(x, triton_norm.Norm(weight, epsilon, offset))
    return normed(x, weight, epsilon, offset)


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, offset: float
) -> tuple[Tensor, Tensor]:
    """``x + residual``, and ``norm`` of that."""
    if runs_kernels(x.device):
        from cgbench.kernels import triton_norm

        return triton_norm.add_norm(x, residual, triton_norm.Norm(weight, epsilon, offset))
    total = x + residual
    return total, normed(total, weight, epsilon, offset)


def normed(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """``norm``, as it is defined: rounded where transformers' modules of either kind round."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if offset:
        return (normed * (weight.float() + offset)).to(x.dtype)
    return normed.to(x.dtype) * weight
