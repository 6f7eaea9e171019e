"""Measure what an iteration's collectives take: the same calls, on the same shapes, and nothing
else.

They are noted while one iteration runs eager, then made again back to back. On CUDA they are
captured in one graph, so that no launch is timed. The result is their cost if all ranks arrive
together. It excludes waiting for a later rank, and ignores that collectives may overlap with
kernels. So the share is one of work, not of a critical path.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.state import DecodeState
from cgbench.parallel.collectives import (
    Collective,
    from_first_rank,
    stacked_over_ranks,
    sum_over_ranks,
    watched_collectives,
)
from cgbench.parallel.ranks import barrier

_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "all_reduce": sum_over_ranks,
    "all_gather": stacked_over_ranks,
    "broadcast": from_first_rank,
}


def collectives_of(spec: Speculator, state: DecodeState, num_rows: int) -> list[Collective]:
    """Return the collectives that one iteration over ``num_rows`` rows calls, in order. The state
    is cleared.
    """
    state.clear()
    with watched_collectives() as seen:
        iteration(spec, state.rows(num_rows))
    return seen


class CollectivesAlone:
    """A ``CollectivesAlone`` repeats the calls of ``collectives_of``, to time them. Release it
    before the process group.
    """

    def __init__(self, calls: Sequence[Collective], device: torch.device) -> None:
        self._calls = [
            (_CALLS[call.kind], torch.zeros(call.shape, dtype=call.dtype, device=device))
            for call in calls
        ]
        self._device = device
        self._graph = self._captured() if device.type == "cuda" and calls else None

    def _run(self) -> None:
        for call, tensor in self._calls:
            call(tensor)

    def _captured(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self._device)
        # Exchanges of two streams at once would read each other's numbers.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            self._run()
            torch.cuda.synchronize(self._device)
            barrier("the capture of the collectives alone")
            graph.capture_begin(capture_error_mode="thread_local")
            self._run()
            graph.capture_end()
        return graph

    def seconds(self) -> float:
        """Make all calls once and return their time in seconds: device time on CUDA, wall time on
        the CPU.
        """
        if self._graph is None:
            start = time.perf_counter()
            self._run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def release(self) -> None:
        """Free the captured graph, if there is one."""
        if self._graph is not None:
            self._graph.reset()
