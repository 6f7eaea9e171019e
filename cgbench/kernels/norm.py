"""The root-mean-square norm in torch: the definition of ``triton_norm``."""

import torch
from torch import Tensor


def normed(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """Rounded where transformers' modules of either kind round."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if offset:
        return (normed * (weight.float() + offset)).to(x.dtype)
    return normed.to(x.dtype) * weight
