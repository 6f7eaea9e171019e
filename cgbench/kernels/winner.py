"""The largest of what the ranks found each, in torch: the definition of ``triton_winner``."""

import torch
from torch import Tensor


def pack_by_torch(part: Tensor, indices: Tensor, first: int) -> Tensor:
    """``triton_winner.pack``, as it is defined."""
    values = part.gather(-1, indices[..., None])[..., 0]
    return torch.stack([values.float(), (first + indices).float()], -1)


def winner_by_torch(packed: Tensor) -> Tensor:
    """``triton_winner.winner``, as it is defined."""
    best = packed[..., 0].argmax(0, keepdim=True)
    return packed[..., 1].gather(0, best)[0].long()
