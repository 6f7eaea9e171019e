"""The ranks' collectives on device tensors are no-ops where there is one rank.

Every rank calls the same ones in the same order. They may be captured: none reads a device value
on the host. What they give is bit for bit the same on every rank. What the ranks' inboxes take goes
through them, where they have some, the rest through torch's process group.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.winner import pack_by_torch, winner_by_torch
from cgbench.parallel.inboxes import opened_inboxes
from cgbench.parallel.ranks import joined

if TYPE_CHECKING:
    from cgbench.kernels.triton_exchange import Inboxes


@dataclass(frozen=True, slots=True)
class Collective:
    """One call: ``kind`` is all_reduce, all_gather or broadcast, ``shape`` what a rank puts in."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype


# torch 2.13 has a new name for it and warns of the old one.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_watchers: list[list[Collective]] = []


@contextmanager
def watched_collectives() -> Iterator[list[Collective]]:
    """Collects the collectives called meanwhile, in order."""
    seen: list[Collective] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def _note(kind: str, tensor: Tensor) -> None:
    for seen in _watchers:
        seen.append(Collective(kind, tuple(tensor.shape), tensor.dtype))


def sum_over_ranks(partial: Tensor) -> Tensor:
    """Every rank's ``partial`` summed, in place."""
    if joined().size > 1:
        _note("all_reduce", partial)
        inboxes = _inboxes_for(partial)
        if inboxes is None:
            dist.all_reduce(partial)
        else:
            inboxes.add_up(partial)
    return partial


def _inboxes_for(part: Tensor) -> "Inboxes | None":
    """The ranks' inboxes, where they have some that take ``part``."""
    inboxes = opened_inboxes()
    return inboxes if inboxes is not None and inboxes.take(part) else None


def from_first_rank(tensor: Tensor) -> Tensor:
    """Rank 0's ``tensor`` on every rank, in place; it is contiguous."""
    if joined().size > 1:
        _note("broadcast", tensor)
        dist.broadcast(tensor, src=0)
    return tensor


def stacked_over_ranks(part: Tensor) -> Tensor:
    """``[N, *part.shape]``: every rank's part, in the order of ranks."""
    if joined().size == 1:
        return part[None]
    _note("all_gather", part)
    part = part.contiguous()
    if (inboxes := _inboxes_for(part)) is not None:
        return inboxes.gather(part)
    # Gloo, unlike NCCL, knows the output only as the parts one after the other.
    num_ranks = joined().size
    flat = torch.empty(num_ranks * part.numel(), dtype=part.dtype, device=part.device)
    _all_gather(flat, part.view(-1))
    return flat.view(num_ranks, *part.shape)


def joined_over_ranks(part: Tensor) -> Tensor:
    """``[..., n]`` to ``[..., N * n]``: the ranks' parts side by side."""
    if joined().size == 1:
        return part
    return stacked_over_ranks(part).movedim(0, -2).flatten(-2)


def argmax_over_ranks(part: Tensor, argmax: Callable[[Tensor], Tensor]) -> Tensor:
    """The argmax ``[...]`` of logits whose last dimension the ranks hold a part each of.

    Only each rank's largest value and its index travel, as two float32: exact, because logits are
    float32 at most and no vocabulary reaches 2^24. Among equals the lowest index wins, as far as it
    does in ``argmax``, which is that of one part.
    """
    ranks = joined()
    assert part.dtype != torch.float64 and part.shape[-1] * ranks.size < 1 << 24
    indices, first = argmax(part), ranks.rank * part.shape[-1]
    if runs_kernels(part.device):
        from cgbench.kernels import triton_winner

        packed = stacked_over_ranks(triton_winner.pack(part, indices, first))
        return triton_winner.winner(packed)
    return winner_by_torch(stacked_over_ranks(pack_by_torch(part, indices, first)))
