"""Time an iteration by device events and by wall clock, as a whole and by stage.

The whole is timed as an engine runs: the host reads results back every iteration, one behind.
Stages are timed in a pass of their own, so that their events never disturb the timed one.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch

from cgbench.engine.graphs import CapturedGraph, capture_instrumented
from cgbench.engine.iteration import Mark, Speculator, iteration
from cgbench.engine.readback import Reader
from cgbench.engine.runner import Runner
from cgbench.engine.state import DecodeState
from cgbench.words import Stage


@dataclass(frozen=True, slots=True)
class IterationTime:
    """An ``IterationTime`` holds the two times of one iteration, in seconds.

    ``gpu_s`` runs from the iteration's first kernel to its last, by device events. ``wall_s`` runs
    from one iteration's result on the host to the next one's. It is None if something untimed lies
    between. On a CPU the two are the same.
    """

    gpu_s: float
    wall_s: float | None


Flush: TypeAlias = Callable[[], object]
"""A flush queues work that leaves nothing of an iteration in the L2 cache."""


def l2_flush(device: torch.device) -> Flush:
    """Return a flush that writes twice the bytes that the device's L2 holds."""
    num_bytes = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(num_bytes, dtype=torch.uint8, device=device).zero_


def num_untimed(device: torch.device) -> int:
    """Return the number of untimed iterations that ``time_iterations`` runs. One runs before the
    timed ones, and on CUDA one more after them.
    """
    return 2 if device.type == "cuda" else 1


def time_iterations(
    runner: Runner, batch_size: int, count: int, flush: Flush | None = None
) -> list[IterationTime]:
    """Run ``count`` consecutive iterations and return their times.

    One untimed iteration runs first and fills the pipeline. On CUDA one more is launched at the
    end, before the last timed result is read. So every result is read while the next iteration is
    already queued. Without it, a host slower than the device would read the last result too early.

    ``flush`` runs before the first event of each iteration, so GPU times do not include it. Wall
    times would include it, so they are None.
    """
    if not runner.state.full.last.is_cuda:
        return _time_on_cpu(runner, batch_size, count)
    steps = range(count + 2)
    starts = [torch.cuda.Event(enable_timing=True) for _ in steps]
    ends = [torch.cuda.Event(enable_timing=True) for _ in steps]
    arrivals = []
    rows = runner.state.rows(batch_size)
    reader = Reader(rows)
    previous = None
    # This loop is not a function of its own, because a profiler's stack should be short where a
    # graph is replayed.
    for start, end in zip(starts, ends, strict=True):
        if flush is not None:
            flush()
        start.record()
        runner.step(batch_size)
        end.record()
        ticket = reader.push(rows)
        if previous is not None:
            previous.wait()
            arrivals.append(time.perf_counter())
        previous = ticket
    assert previous is not None
    previous.wait()
    gpu = [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends, strict=True)]
    wall = [after - before for before, after in pairwise(arrivals)]
    return [
        IterationTime(g, None if flush is not None else w)
        for g, w in zip(gpu[1:-1], wall, strict=True)
    ]


def _time_on_cpu(runner: Runner, batch_size: int, count: int) -> list[IterationTime]:
    runner.step(batch_size)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        runner.step(batch_size)
        elapsed = time.perf_counter() - start
        times.append(IterationTime(elapsed, elapsed))
    return times


class StageTimer(Protocol):
    """A ``StageTimer`` runs one iteration and measures each of its stages."""

    def time_stages(self) -> dict[Stage, float]:
        """Run one iteration and return the time of each stage, in seconds."""
        ...


def _gaps(marks: Iterable[tuple[Stage | None, float]]) -> Iterator[tuple[Stage, float]]:
    """Yield each stage, and the time from the mark before it to its own."""
    for (_, start), (stage, end) in pairwise(marks):
        if stage is not None:
            yield stage, end - start


class CpuStages:
    """A ``CpuStages`` times the stages of an eager iteration on the CPU, by the wall clock."""

    def __init__(self, spec: Speculator, state: DecodeState, batch_size: int) -> None:
        self._run: Callable[[Mark], None] = lambda mark: iteration(
            spec, state.rows(batch_size), mark
        )

    def time_stages(self) -> dict[Stage, float]:
        times: list[tuple[Stage | None, float]] = []
        self._run(lambda stage: times.append((stage, time.perf_counter())))
        return dict(_gaps(times))


class EventStages:
    """An ``EventStages`` times stages by device events. ``run`` records them from the host or
    inside a graph.
    """

    def __init__(self, run: Callable[[Mark], None], external: bool) -> None:
        self._run = run
        self._external = external
        self._events: dict[Stage | None, torch.cuda.Event] = {}

    def mark(self, stage: Stage | None) -> None:
        """Record the stage's event on the current stream, or into the graph being captured."""
        if stage not in self._events:
            self._events[stage] = torch.cuda.Event(enable_timing=True, external=self._external)
        self._events[stage].record()

    def time_stages(self) -> dict[Stage, float]:
        self._run(self.mark)
        torch.cuda.synchronize()
        return dict(self._elapsed())

    def _elapsed(self) -> Iterator[tuple[Stage, float]]:
        for (_, start), (stage, end) in pairwise(self._events.items()):
            if stage is not None:
                yield stage, start.elapsed_time(end) / 1e3


def eager_stages(spec: Speculator, state: DecodeState, batch_size: int) -> StageTimer:
    """Return a timer for the stages of the eager iteration."""
    if not state.full.last.is_cuda:
        return CpuStages(spec, state, batch_size)

    return EventStages(lambda mark: iteration(spec, state.rows(batch_size), mark), external=False)


def graph_stages(spec: Speculator, state: DecodeState, num_rows: int) -> StageTimer:
    """Capture an instrumented graph, and return a timer for the stages of its iteration."""
    captured: list[CapturedGraph] = []
    timer = EventStages(lambda _: captured[0].graph.replay(), external=True)
    captured.append(capture_instrumented(spec, state, num_rows, timer.mark))
    return timer
