"""A real slow-down of known length: an extra kernel in every captured graph; on a CPU a busy wait.

It lives here and not in the product: the process that is to be slow replaces ``verify``, which
every iteration runs once, before it runs ``cgbench``.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from cgbench.engine import deployment, iteration
from cgbench.engine.graphs import capture_plan
from cgbench.engine.iteration import Speculator
from cgbench.kernels.row_state import RowState
from cgbench.words import Scope

PROBED_CYCLES = (20_000, 200_000)
PROBED_NODES = (20, 60)
PROBES = 30


class Spot(NamedTuple):
    """A cell, as a capture knows it: its bucket is its batch size."""

    scope: str
    spec_tokens: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """``torch.cuda._sleep``: one node of a graph takes ``base_s + cycles * s_per_cycle``."""

    base_s: float
    s_per_cycle: float

    def cycles(self, seconds: float) -> int:
        """The cycles of a node that takes ``seconds``."""
        return max(round((seconds - self.base_s) / self.s_per_cycle), 1)

    def seconds(self, cycles: int) -> float:
        return self.base_s + cycles * self.s_per_cycle


def calibrate() -> Kernel:
    """Time the kernel alone in graphs, at two lengths."""
    few, many = PROBED_CYCLES
    slow, fast = node_seconds(many), node_seconds(few)
    s_per_cycle = (slow - fast) / (many - few)
    return Kernel(fast - few * s_per_cycle, s_per_cycle)


def node_seconds(cycles: int) -> float:
    """What one more such node adds to a graph: launching the graph, and its ends, cancel."""
    few, many = PROBED_NODES
    return (_graph_seconds(cycles, many) - _graph_seconds(cycles, few)) / (many - few)


def _graph_seconds(cycles: int, nodes: int) -> float:
    """The median of ``PROBES`` replays."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(nodes):
            torch.cuda._sleep(cycles)
    graph.replay()
    times: list[float] = []
    for _ in range(PROBES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    graph.reset()
    return median(times)


def plant_kernels(cycles: Mapping[Spot, int]) -> None:
    """From now on every graph that is captured for a timed scope holds the kernel, once; the
    instrumented graphs of the stage pass, and whatever runs eager, do not."""
    scopes: list[Scope] = []

    def capture(spec: Speculator, state: Any, plan: Any, scope: Scope, **others: Any) -> Any:
        scopes.append(scope)
        try:
            return capture_plan(spec, state, plan, scope, **others)
        finally:
            scopes.pop()

    def wait(rows: RowState) -> None:
        if scopes and torch.cuda.is_current_stream_capturing():
            torch.cuda._sleep(cycles[Spot(scopes[-1], rows.spec_tokens, rows.batch_size)])

    mock.patch.object(deployment, "capture_plan", capture).start()
    _after_verify(wait)


def plant_waits(seconds: Mapping[Spot, float]) -> None:
    """From now on every iteration on the CPU, of the batch sizes given, waits so long."""

    def wait(rows: RowState) -> None:
        end = time.perf_counter() + seconds.get(
            Spot(Scope.EAGER, rows.spec_tokens, rows.batch_size), 0.0
        )
        while time.perf_counter() < end:
            pass

    _after_verify(wait)


def _after_verify(wait: Callable[[RowState], None]) -> None:
    verify = iteration.verify

    def slow_verify(spec: Speculator, rows: RowState) -> Tensor:
        logits = verify(spec, rows)
        wait(rows)
        return logits

    iteration.verify = slow_verify
