"""Memory of every rank's GPU that the other ranks write to, where the machine lets them.

It is torch's symmetric memory, mapped into each rank's address space, without multicast. What is
written there, and how it is read, is ``triton_exchange``'s.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from cgbench.parallel.ranks import first_failure, rank, tp_size

if TYPE_CHECKING:
    from cgbench.parallel.triton_exchange import Inboxes


@dataclass(frozen=True, slots=True)
class _Opened:
    """``inboxes``, and what keeps their memory mapped: this rank's own, and torch's handle."""

    inboxes: "Inboxes"
    memory: Tensor
    handle: Any


_NOT_OPENED = "there is one rank"

_state: _Opened | str = _NOT_OPENED
"""The inboxes, or why there are none."""


@contextmanager
def open_inboxes() -> Iterator[None]:
    """Let ranks on CUDA exchange few numbers without NCCL meanwhile, where all of them can.

    All ranks enter it together. Graphs that exchange must be released inside. After an exception
    they are left as they are: to unmap them torch waits for the device, which may wait for a rank
    that is gone, and where it may not answer any more ends the process.
    """
    global _state
    _state = _opened_by_all()
    yield
    _state = _NOT_OPENED


def opened_inboxes() -> "Inboxes | None":
    """The inboxes, None where ranks have none."""
    return None if isinstance(_state, str) else _state.inboxes


def why_no_inboxes() -> str | None:
    """Why ranks have no inboxes, None where they have."""
    return _state if isinstance(_state, str) else None


def mapped_memory(num_elements: int, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """Zeros on this rank's GPU that all ranks reach, and torch's handle, which has the addresses
    and keeps them mapped. All ranks call it together."""
    from torch.distributed import _symmetric_memory as symmetric_memory

    device = torch.device("cuda", torch.cuda.current_device())
    memory = symmetric_memory.empty(num_elements, dtype=dtype, device=device).zero_()
    torch.cuda.synchronize(device)
    group = dist.group.WORLD
    assert group is not None
    return memory, symmetric_memory.rendezvous(memory, group)


def _opened_by_all() -> _Opened | str:
    """Inboxes on every rank, or on none and why."""
    obstacle = first_failure(_obstacle())
    if obstacle is not None:
        return obstacle
    opened = _try_to_open()
    # After it, too, everybody's memory is zero, and may be written.
    failure = first_failure(opened if isinstance(opened, str) else None)
    return opened if failure is None else failure


def _try_to_open() -> _Opened | str:
    """Inboxes, or why there are none. The ranks' answers may differ."""
    from cgbench.parallel.triton_exchange import MAX_PROGRAMS, Inboxes, inbox_words

    try:
        memory, handle = mapped_memory(inbox_words(tp_size()), torch.int64)
        addresses = torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=memory.device)
        counts = torch.zeros(MAX_PROGRAMS, dtype=torch.int32, device=memory.device)
    # Whatever a driver, a container or another version of torch raises, NCCL is there.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return _Opened(Inboxes(addresses, counts, rank()), memory, handle)


def _obstacle() -> str | None:
    """What is in the way of this rank, known before ranks try together."""
    if not dist.is_initialized() or dist.get_backend() != "nccl":
        return "ranks are on a CPU"
    if find_spec("triton") is None:
        return "triton is not installed"
    num_ranks, own = tp_size(), torch.cuda.current_device()
    if int(os.environ["LOCAL_WORLD_SIZE"]) != num_ranks:
        return "ranks are on several machines"
    others = [device for device in range(num_ranks) if device != own]
    if not all(torch.cuda.can_device_access_peer(own, other) for other in others):
        return "the GPUs do not reach each other's memory"
    return None
