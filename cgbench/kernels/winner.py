"""Find the largest of what each rank found, in torch. This defines ``triton_winner``."""

import torch
from torch import Tensor


def pack_by_torch(part: Tensor, indices: Tensor, first: int) -> Tensor:
    """Compute ``triton_winner.pack`` in torch's operations, which define it."""
    values = part.gather(-1, indices[..., None])[..., 0]
    return torch.stack([values.float(), (first + indices).float()], -1)


def winner_by_torch(packed: Tensor) -> Tensor:
    """Compute ``triton_winner.winner`` in torch's operations, which define it."""
    best = packed[..., 0].argmax(0, keepdim=True)
    return packed[..., 1].gather(0, best)[0].long()
