"""Capture CUDA graphs of the iteration, and check them against the plan.

The graphs of a plan share one pool, so the largest is captured first.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from cgbench.engine.addresses import Addresses, captured_addresses
from cgbench.engine.forwards import (
    Forwards,
    check_forwards,
    planned_forwards,
    watched_forwards,
)
from cgbench.engine.graph_cost import GraphCost
from cgbench.engine.iteration import (
    Mark,
    Speculator,
    draft_first_phase,
    draft_rest_phase,
    iteration,
    no_mark,
    verify_phase,
)
from cgbench.engine.state import DecodeState
from cgbench.errors import CaptureError, OutOfMemoryError
from cgbench.kernels.library_rows import choosing, may_choose
from cgbench.kernels.row_updates import RowState
from cgbench.parallel.ranks import barrier
from cgbench.planning import Bucket, CapturePlan
from cgbench.words import Phase, Scope

PhaseFunction = Callable[[Speculator, RowState, Mark], None]


def phases_of(scope: Scope, spec_tokens: int) -> dict[Phase, PhaseFunction]:
    """Return the functions whose graphs make up one iteration of a scope, in replay order.

    With k = 0 there is nothing to draft. Then verify is alone, and it commits too.
    """
    if scope is Scope.ITERATION:
        return {Phase.ITERATION: iteration}
    if not spec_tokens:
        return {Phase.VERIFY: verify_phase}
    return {
        Phase.VERIFY: verify_phase,
        Phase.DRAFT_FIRST: draft_first_phase,
        Phase.DRAFT_REST: draft_rest_phase,
    }


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A captured graph is one CUDA graph, ready to replay, with what its capture cost."""

    graph: torch.cuda.CUDAGraph
    cost: GraphCost


class GraphSet:
    """A graph set holds all graphs of one (k, scope), as a deployment with that setting would.

    Use ``capture_plan`` to make one, ``replay(bucket)`` to run an iteration, and ``release`` to
    free the graphs and their pool.
    """

    def __init__(self, scope: Scope, spec_tokens: int, addresses: Addresses) -> None:
        self.scope = scope
        self.spec_tokens = spec_tokens
        self.addresses = addresses
        """These are the addresses, at the capture, of everything that the graphs read or write."""
        self._graphs: dict[int, list[CapturedGraph]] = {}

    def replay(self, batch_size: int) -> None:
        """Run one iteration over the first ``batch_size`` rows, which must be a captured bucket."""
        for captured in self._graphs[batch_size]:
            captured.graph.replay()

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Return the captured batch sizes, in the order they were captured."""
        return tuple(self._graphs)

    def captured(self, batch_size: int) -> Sequence[CapturedGraph]:
        """Return the graphs of one bucket, in replay order."""
        return tuple(self._graphs[batch_size])

    @property
    def costs(self) -> list[GraphCost]:
        """Return the cost of every graph, in capture order."""
        return [captured.cost for graphs in self._graphs.values() for captured in graphs]

    @property
    def num_bytes(self) -> int:
        """Return the device bytes that the graphs hold, in their pool and beside it."""
        return sum(cost.pool_bytes + cost.driver_bytes for cost in self.costs)

    def add(self, batch_size: int, graphs: list[CapturedGraph]) -> None:
        """Add the graphs of a new bucket."""
        assert batch_size not in self._graphs
        self._graphs[batch_size] = graphs

    def release(self) -> None:
        """Destroy the graphs. Their buffers outlive them. Nothing may be replayed after this."""
        for graphs in self._graphs.values():
            for captured in graphs:
                captured.graph.reset()
        self._graphs.clear()


def capture_plan(
    spec: Speculator,
    state: DecodeState,
    plan: CapturePlan,
    scope: Scope,
    *,
    on_bucket: Callable[[Bucket], None] = lambda _: None,
) -> GraphSet:
    """Capture every bucket of the plan, large to small, in one pool.

    Raise ``CaptureError`` if a graph is not the plan's. Raise ``OutOfMemoryError`` naming the
    bucket that did not fit.
    """
    graph_set = GraphSet(scope, plan.spec_tokens, captured_addresses(spec, state))
    state.clear()
    with _capturing(spec.target.device) as capturer:
        for bucket in reversed(plan.buckets):
            graph_set.add(bucket.batch_size, _capture_bucket(spec, state, bucket, scope, capturer))
            on_bucket(bucket)
    _check_against_plan(graph_set, plan)
    return graph_set


def capture_instrumented(
    spec: Speculator, state: DecodeState, batch_size: int, mark: Mark
) -> CapturedGraph:
    """Capture one iteration that calls ``mark`` at the end of each stage, in a pool of its own.

    It serves stage times only, because the marks' event nodes would disturb a graph that is timed.
    """
    bucket = Bucket(batch_size, batch_size * (state.spec_tokens + 1))
    with _capturing(spec.target.device) as capturer:
        return capturer.capture(iteration, spec, state, bucket, Phase.ITERATION, mark)


def _capture_bucket(
    spec: Speculator, state: DecodeState, bucket: Bucket, scope: Scope, capturer: "_Capturer"
) -> list[CapturedGraph]:
    try:
        return [
            capturer.capture(function, spec, state, bucket, phase)
            for phase, function in phases_of(scope, state.spec_tokens).items()
        ]
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory capturing the {scope} graph of {bucket.batch_size} requests "
            f"({bucket.num_tokens} tokens): lower --max-num-seqs, --max-num-batched-tokens, "
            "--context-len or --capture-sizes"
        ) from error
    except RuntimeError as error:
        raise CaptureError(
            f"MODEL: the {scope} graph of {bucket.batch_size} requests cannot be captured "
            f"({str(error).partition(chr(10))[0]}). --scopes eager runs without graphs"
        ) from error


def _check_against_plan(graph_set: GraphSet, plan: CapturePlan) -> None:
    planned = tuple(reversed(plan.batch_sizes))
    if graph_set.batch_sizes != planned:
        raise CaptureError(
            f"captured batch sizes {graph_set.batch_sizes} are not the plan's {planned}"
        )


class _Capturer:
    """A capturer captures functions on one side stream into one pool, and times each step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def capture(
        self,
        function: PhaseFunction,
        spec: Speculator,
        state: DecodeState,
        bucket: Bucket,
        phase: Phase,
        mark: Mark = no_mark,
    ) -> CapturedGraph:
        rows = state.rows(bucket.batch_size)
        planned = planned_forwards(
            phase, bucket, state.spec_tokens, spec.num_modules, is_parallel=spec.is_parallel
        )
        with torch.cuda.stream(self.stream):
            # On the capturing stream, so that its cuBLAS workspace exists before the capture.
            warmup_s = self._timed(lambda: function(spec, rows, no_mark))
            is_shared = bool(spec.target.splits)
            # Ranks that chose apart would round apart.
            if not is_shared and may_choose(max(num_rows for _, num_rows in planned)):
                with choosing():
                    function(spec, rows, no_mark)
            torch.cuda.empty_cache()
            # Collectives are captured by all ranks or by none.
            barrier(f"the capture of the {phase} graph of {bucket.batch_size} requests")
            before = self._memory()
            graph = torch.cuda.CUDAGraph(keep_graph=True)
            forwards: Forwards = []
            capture_s = self._timed(
                lambda: forwards.extend(self._record(graph, function, spec, rows, mark))
            )
            check_forwards(forwards, planned)
            barrier(f"the first replay of the {phase} graph of {bucket.batch_size} requests")
            instantiate_s = self._timed(graph.instantiate)
            first_replay_s = self._timed(graph.replay)
            after = self._memory()
        cost = GraphCost(
            phase=phase,
            spec_tokens=state.spec_tokens,
            bucket=bucket.batch_size,
            num_tokens=bucket.num_tokens,
            warmup_s=warmup_s,
            capture_s=capture_s,
            instantiate_s=instantiate_s,
            first_replay_s=first_replay_s,
            pool_bytes=after[0] - before[0],
            driver_bytes=(after[1] - after[0]) - (before[1] - before[0]),
            nodes=num_nodes(graph),
        )
        return CapturedGraph(graph, cost)

    def _record(
        self,
        graph: torch.cuda.CUDAGraph,
        function: PhaseFunction,
        spec: Speculator,
        rows: RowState,
        mark: Mark,
    ) -> Forwards:
        with watched_forwards(spec) as seen:
            # Other threads (telemetry, progress) may call the CUDA runtime during a capture.
            graph.capture_begin(self.pool, capture_error_mode="thread_local")
            try:
                function(spec, rows, mark)
            except BaseException:
                # Ending a broken capture fails too, and would hide why it broke.
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        return seen

    def _timed(self, work: Callable[[], None]) -> float:
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _memory(self) -> tuple[int, int]:
        """Return the bytes that torch has reserved, and the bytes in use on the whole device."""
        free, total = torch.cuda.mem_get_info(self.device)
        return torch.cuda.memory_reserved(self.device), total - free


@contextmanager
def _capturing(device: torch.device) -> Iterator[_Capturer]:
    """Yield a capturer while garbage collection is off, because freeing a CUDA object breaks a
    capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield _Capturer(device)
    finally:
        if was_enabled:
            gc.enable()


def num_nodes(graph: torch.cuda.CUDAGraph) -> int | None:
    """Return how many nodes the graph has, or None if cuda-bindings cannot count them."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    status, _, count = runtime.cudaGraphGetNodes(graph.raw_cuda_graph())
    return int(count) if status == runtime.cudaError_t.cudaSuccess else None
