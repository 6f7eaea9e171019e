"""Read results without stopping the device, by non-blocking copies one iteration behind."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cgbench.kernels.row_updates import RowState


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket stands for a copy under way. ``wait`` returns the copy.

    It is valid until the reader's second push after it.
    """

    host: Tensor
    done: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """Return ``RowState.result [b, k + 4]`` of the ticket's iteration.

        Blocks until that iteration's copy has landed.
        """
        if self.done is not None:
            self.done.synchronize()
        return self.host


class Reader:
    """A reader copies results to the host while the next iteration runs.

    It uses two buffers in turn, pinned if the device is a GPU.
    """

    def __init__(self, like: RowState) -> None:
        self._on_cuda = like.result.is_cuda
        self._buffers = [
            torch.empty_like(like.result, device="cpu", pin_memory=self._on_cuda) for _ in range(2)
        ]
        self._events = [torch.cuda.Event() if self._on_cuda else None for _ in range(2)]
        self._turn = 0

    def push(self, rows: RowState) -> Ticket:
        """Start copying the rows' result. The copy is ordered before the next iteration."""
        self._turn = 1 - self._turn
        host = self._buffers[self._turn][: rows.batch_size]
        host.copy_(rows.result, non_blocking=True)
        event = self._events[self._turn]
        if event is not None:
            event.record()
        return Ticket(host, event)
