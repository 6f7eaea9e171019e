"""Exchange device tensors between the ranks. With one rank nothing is exchanged.

Every rank calls the same collectives in the same order. They may be captured, because none reads a
device value on the host. Their results are the same on every rank, bit for bit. A tensor goes
through the ranks' inboxes if there are some that take it. The rest goes through torch's process
group.
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
    """A ``Collective`` is the record of one collective call.

    ``kind`` is all_reduce, all_gather or broadcast. ``shape`` is that of the tensor that a rank
    puts in.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype


# torch 2.13 has a new name for it and warns of the old one.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_watchers: list[list[Collective]] = []


@contextmanager
def watched_collectives() -> Iterator[list[Collective]]:
    """Yield a list that collects the collectives called meanwhile, in order."""
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
    """Sum every rank's ``partial`` in place, and return it."""
    if joined().size > 1:
        _note("all_reduce", partial)
        inboxes = _inboxes_for(partial)
        if inboxes is None:
            dist.all_reduce(partial)
        else:
            inboxes.add_up(partial)
    return partial


def _inboxes_for(part: Tensor) -> "Inboxes | None":
    """Return the ranks' inboxes if there are some that take ``part``, else None."""
    inboxes = opened_inboxes()
    return inboxes if inboxes is not None and inboxes.take(part) else None


def from_first_rank(tensor: Tensor) -> Tensor:
    """Overwrite ``tensor`` with rank 0's, in place, and return it. It must be contiguous."""
    if joined().size > 1:
        _note("broadcast", tensor)
        dist.broadcast(tensor, src=0)
    return tensor


def stacked_over_ranks(part: Tensor) -> Tensor:
    """Return every rank's ``part`` as ``[N, *part.shape]``, in the order of ranks."""
    if joined().size == 1:
        return part[None]
    _note("all_gather", part)
    part = part.contiguous()
    if (inboxes := _inboxes_for(part)) is not None:
        return inboxes.gather(part)
    # Gloo, unlike NCCL, takes the output only as the parts one after the other.
    num_ranks = joined().size
    flat = torch.empty(num_ranks * part.numel(), dtype=part.dtype, device=part.device)
    _all_gather(flat, part.view(-1))
    return flat.view(num_ranks, *part.shape)


def joined_over_ranks(part: Tensor) -> Tensor:
    """Return the ranks' parts ``[..., n]`` side by side, as ``[..., N * n]``."""
    if joined().size == 1:
        return part
    return stacked_over_ranks(part).movedim(0, -2).flatten(-2)


def argmax_over_ranks(part: Tensor, argmax: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the argmax ``[...]`` of logits whose last dimension is divided over the ranks.

    Only each rank's largest value and its index travel, as two float32. That is exact, because
    logits are float32 at most and no vocabulary reaches 2^24. ``argmax`` is the argmax of one part.
    Among equals the lowest index wins, as far as it does in ``argmax``.
    """
    ranks = joined()
    assert part.dtype != torch.float64 and part.shape[-1] * ranks.size < 1 << 24
    indices, first = argmax(part), ranks.rank * part.shape[-1]
    if runs_kernels(part.device):
        from cgbench.kernels import triton_winner

        packed = stacked_over_ranks(triton_winner.pack(part, indices, first))
        return triton_winner.winner(packed)
    return winner_by_torch(stacked_over_ranks(pack_by_torch(part, indices, first)))
