"""Memory of every rank's GPU that the other ranks write to, where the machine lets them.

It is torch's symmetric memory, mapped into each rank's address space, without multicast. What is
written there, and how it is read, is ``triton_exchange``'s.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from cgbench.parallel.ranks import gathered, rank, tp_size

if TYPE_CHECKING:
    from cgbench.parallel.triton_exchange import Inboxes


@dataclass(frozen=True, slots=True)
class _Opened:
    """``inboxes``, and what keeps their memory mapped: this rank's own, and torch's handle."""

    inboxes: "Inboxes"
    memory: Tensor
    handle: Any


_opened: _Opened | None = None
_reason: str | None = "there is one rank"


@contextmanager
def open_inboxes() -> Iterator[None]:
    """Let ranks on CUDA exchange few numbers without NCCL meanwhile, where all of them can.

    All ranks enter it together. Graphs that exchange must be released inside.
    """
    global _opened, _reason
    opened, _reason = None, _first(gathered(_obstacle()))
    if _reason is None:
        opened, reason = _try_to_open()
        # After it, too, everybody's memory is zero, and may be written.
        _reason = _first(gathered(reason))
    _opened = opened if _reason is None else None
    try:
        yield
    finally:
        _opened = None


def opened_inboxes() -> "Inboxes | None":
    """The inboxes, None where ranks have none."""
    return None if _opened is None else _opened.inboxes


def why_no_inboxes() -> str | None:
    """Why ranks have no inboxes, None where they have."""
    return _reason if _opened is None else None


def _first(reasons: Sequence[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def _try_to_open() -> tuple[_Opened | None, str | None]:
    """Inboxes, or why there are none. The ranks' answers may differ."""
    from torch.distributed import _symmetric_memory as symmetric_memory

    from cgbench.parallel.triton_exchange import MAX_PROGRAMS, Inboxes, inbox_words

    # The multicast of NVSwitch (NVLS) fails where a container may not map it.
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        memory = symmetric_memory.empty(inbox_words(tp_size()), dtype=torch.int64, device=device)
        memory.zero_()
        counts = torch.zeros(MAX_PROGRAMS, dtype=torch.int32, device=device)
        torch.cuda.synchronize(device)
        handle = symmetric_memory.rendezvous(memory, _everyone())
        addresses = torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=device)
    # Whatever a driver, a container or another version of torch raises, NCCL is there.
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return _Opened(Inboxes(addresses, counts, rank()), memory, handle), None


def _everyone() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


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
