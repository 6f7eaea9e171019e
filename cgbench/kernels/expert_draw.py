"""Draw experts evenly, in torch. This is the definition of ``triton_draw``."""

from dataclasses import dataclass

from torch import Tensor

MASK = (1 << 32) - 1
"""Hashes are 32 bits wide, and are kept in int64."""
STEP = 0x9E3779B1
"""This odd number, from the golden ratio, spreads consecutive numbers over the hash."""


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """An expert shape is the size of one layer's mixture: a token chooses ``top_k`` of
    ``num_experts``."""

    num_experts: int
    top_k: int


def draw_by_torch(
    keys: Tensor, positions: Tensor, layers: Tensor, start: int, shape: ExpertShape, out: Tensor
) -> None:
    """Draw the experts of every layer and token into ``out [L, B * S, top_k]``.

    This defines ``draw_experts`` in torch's operations. Slot j takes a free expert by its rank, of
    E - j free ones. The rank-th free number is the least x that equals the rank plus how many taken
    numbers are at most x.
    """
    tokens = mixed_bits((mixed_bits(keys & MASK)[:, None] + positions * STEP) & MASK).flatten()
    by_layer = mixed_bits((start + layers * STEP) & MASK)
    state = mixed_bits(tokens ^ by_layer[:, None])
    for slot in range(shape.top_k):
        drawn = mixed_bits((state + (slot + 1) * STEP) & MASK)
        rank = (drawn * (shape.num_experts - slot)) >> 32
        expert = rank
        for _ in range(slot):
            expert = rank + (out[:, :, :slot] <= expert[:, :, None]).sum(-1)
        out[:, :, slot] = expert


def mixed_bits(x: Tensor) -> Tensor:
    """Return MurmurHash3's finaliser on 32 bits.

    Each bit of the input moves half of the output's.
    """
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)
