"""Open memory on every rank's GPU that the other ranks write to, if the machine allows it.

The memory is torch's symmetric memory, mapped into each rank's address space, without multicast.
``triton_exchange`` defines what is written there, and how it is read.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cgbench.kernels.gpu import HAS_TRITON
from cgbench.parallel.ranks import Ranks, first_failure

if TYPE_CHECKING:
    from cgbench.kernels.triton_exchange import Inboxes

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Opened:
    """This holds open inboxes, and what keeps their memory mapped.

    That is this rank's own memory, and torch's handle.
    """

    inboxes: "Inboxes"
    memory: Tensor
    handle: Any


_NOT_OPENED = "there is one rank"

_state: _Opened | str = _NOT_OPENED
"""The inboxes, or why there are none."""


@contextmanager
def open_inboxes(ranks: Ranks) -> Iterator[None]:
    """Let ``ranks`` on CUDA exchange numbers without NCCL meanwhile, if all of them can.

    All ranks enter it together. Graphs that exchange must be released inside. After an exception
    the inboxes are left as they are. To unmap them torch waits for the device, which may wait for a
    rank that is gone. If the device does not answer, torch ends the process.
    """
    global _state
    _state = _opened_by_all(ranks)
    yield
    _state = _NOT_OPENED


def opened_inboxes() -> "Inboxes | None":
    """Return the inboxes through which ranks exchange, or None if there are none."""
    return None if isinstance(_state, str) else _state.inboxes


def why_no_inboxes() -> str | None:
    """Return the reason why ranks have no inboxes, or None if they have some."""
    return _state if isinstance(_state, str) else None


def mapped_memory(num_elements: int, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """Return zeros on this rank's GPU that all ranks reach, and torch's handle of them.

    The handle has the addresses and keeps them mapped. All ranks call this together.
    """
    memory = _reachable_zeros(num_elements, dtype)
    return memory, _mapped(memory)


def _reachable_zeros(num_elements: int, dtype: torch.dtype) -> Tensor:
    from torch.distributed import _symmetric_memory as symmetric_memory

    device = torch.device("cuda", torch.cuda.current_device())
    memory: Tensor = symmetric_memory.empty(num_elements, dtype=dtype, device=device).zero_()
    torch.cuda.synchronize(device)
    return memory


def _mapped(memory: Tensor) -> Any:
    """Map the memory on all ranks, which wait in it for each other."""
    from torch.distributed import _symmetric_memory as symmetric_memory

    group = dist.group.WORLD
    assert group is not None
    return symmetric_memory.rendezvous(memory, group)


def _opened_by_all(ranks: Ranks) -> _Opened | str:
    """Return inboxes on every rank, or on none and the reason."""
    obstacle = first_failure(_obstacle(ranks))
    if obstacle is not None:
        return obstacle
    # All ranks have memory before any maps it. Or else the others would wait for one without.
    memory = _on_all(lambda: _inbox_memory(ranks))
    if isinstance(memory, str):
        return memory
    # Once all have opened theirs, every rank's memory is zero and may be written.
    return _on_all(lambda: _open(memory, ranks))


def _on_all(step: Callable[[], _T]) -> _T | str:
    """Return the result of ``step`` if it worked on every rank, or why it failed on one of them."""
    try:
        given: _T | str = step()
    # A driver, a container or another version of torch may raise anything, and NCCL is there.
    except Exception as error:
        given = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    failure = first_failure(given if isinstance(given, str) else None)
    return given if failure is None else failure


def _inbox_memory(ranks: Ranks) -> Tensor:
    from cgbench.kernels.triton_exchange import inbox_words

    return _reachable_zeros(inbox_words(ranks.size), torch.int64)


def _open(memory: Tensor, ranks: Ranks) -> _Opened:
    from cgbench.kernels.triton_exchange import NUM_COUNTS, Inboxes

    handle = _mapped(memory)
    addresses = torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=memory.device)
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int32, device=memory.device)
    return _Opened(Inboxes(addresses, counts, ranks.rank), memory, handle)


def _obstacle(ranks: Ranks) -> str | None:
    """Return what is in the way of this rank, known before the ranks try together."""
    if int(os.environ["LOCAL_WORLD_SIZE"]) != ranks.size:
        return "ranks are on several machines"
    if not dist.is_initialized() or dist.get_backend() != "nccl":
        return "ranks are on a CPU"
    if not HAS_TRITON:
        return "triton is not installed"
    own = torch.cuda.current_device()
    others = [device for device in range(ranks.size) if device != own]
    if not all(torch.cuda.can_device_access_peer(own, other) for other in others):
        return "the GPUs do not reach each other's memory"
    return None
