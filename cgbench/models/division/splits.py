"""State how a tensor is divided over the ranks, and put it together again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cgbench.kernels.fp8.block_scales import FP8
from cgbench.parallel.collectives import stacked_over_ranks
from cgbench.parallel.ranks import Ranks

LM_HEAD = "lm_head.weight"
HEAD_OUTPUT = "output.weight"
"""This is the name of a head's own output matrix. It is divided as the target's lm_head is."""


@dataclass(frozen=True, slots=True)
class Split:
    """A split is the way in which a tensor is divided over the ranks, along ``dim``.

    Blocks lie one after another along that dimension, of the relative sizes ``blocks``. Each is
    divided for itself. ``num_copies`` neighbouring ranks hold the same part.
    """

    dim: int
    blocks: tuple[int, ...] = (1,)
    num_copies: int = 1

    def num_parts(self, num_ranks: int) -> int:
        """Return how many different parts ``num_ranks`` ranks hold."""
        return num_ranks // self.num_copies

    def part(self, whole: Tensor, ranks: Ranks) -> Tensor:
        """Return this rank's part of ``whole``, in storage of its own."""
        num_parts, place = self.num_parts(ranks.size), ranks.rank // self.num_copies
        return torch.cat(
            [block.chunk(num_parts, self.dim)[place] for block in self._apart(whole)], self.dim
        )

    def joined(self, part: Tensor) -> Tensor:
        """Return the whole tensor, made of every rank's ``part``."""
        if part.dtype == FP8:
            # Collectives do not take this type.
            return self.joined(part.view(torch.uint8)).view(FP8)
        of_ranks = stacked_over_ranks(part)[:: self.num_copies]
        pieces = [self._apart(each) for each in of_ranks]
        return torch.cat([p[i] for i in range(len(self.blocks)) for p in pieces], self.dim)

    def block_sizes(self, size: int) -> list[int]:
        """Return the sizes of the blocks of a tensor, or of a part, that has ``size`` in all."""
        return [size * block // sum(self.blocks) for block in self.blocks]

    def _apart(self, tensor: Tensor) -> Sequence[Tensor]:
        sizes = self.block_sizes(tensor.shape[self.dim])
        return torch.split(tensor, sizes, self.dim)


Splits = Mapping[str, Split]
"""``Splits`` maps parameter names to their splits. A name that is not there is whole on every
rank."""


def split_of(parameter: DTensor) -> Split | None:
    """Return how transformers has divided ``parameter``, or None if it is whole."""
    placement: Any = parameter.placements[0]
    if placement.is_replicate():
        return None
    return Split(placement.dim % parameter.ndim, (1,) * getattr(placement, "split_factor", 1))


def kv_copies(num_kv_heads: int, num_ranks: int) -> int:
    """Return how many of ``num_ranks`` ranks hold each of a layer's key-value heads."""
    return max(1, num_ranks // num_kv_heads)


_BY_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_BY_COLUMNS = ("o_proj", "down_proj")


def plain_split(name: str) -> Split | None:
    """Return how the parameter ``name`` of Llama's attention or MLP is divided, or None if whole.

    Queries, keys, values, gate and up are divided by rows, with their biases. The products that
    are summed over the ranks are divided by columns, and their biases are whole.
    """
    module, _, leaf = name.rpartition(".")
    projection = module.rpartition(".")[2]
    if projection in _BY_ROWS:
        return Split(0)
    return Split(1) if projection in _BY_COLUMNS and leaf == "weight" else None


def is_gated_attention(module: Any) -> bool:
    """Return whether ``module`` is attention as Step's, whose heads are normed and gated apart."""
    if not all(hasattr(module, name) for name in ("g_proj", "num_heads", "q_norm", "head_dim")):
        return False
    return bool(module.q_norm.weight.numel() == module.head_dim)
