"""Mark NVTX ranges for profilers: one a stage that the host launches, one a graph that it replays.

The host sees a replay as one call, so nothing inside a graph has a range of its own. A profiler
names its kernels (``nsys profile --cuda-graph-trace=node``), and scope eager shows the stages.
Without ``--nvtx`` none of this exists, because the plain runners have no branch for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.cuda import nvtx

from cgbench.engine.graphs import GraphSet
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.runner import EagerRunner, GraphRunner
from cgbench.engine.state import DecodeState
from cgbench.planning import CapturePlan
from cgbench.words import Stage


@contextmanager
def named_range(name: str) -> Iterator[None]:
    """Mark a range around what the host does inside the context."""
    nvtx.range_push(name)
    try:
        yield
    finally:
        nvtx.range_pop()


class StageRanges:
    """A ``StageRanges`` is a ``Mark`` that turns the ends of stages into ranges.

    It relies on the fixed order of stages.
    """

    def __init__(self, spec_tokens: int, *, is_parallel: bool = False) -> None:
        stages = Stage.of_iteration(spec_tokens, is_parallel=is_parallel)
        self._next = dict(zip((None, *stages), stages, strict=False))

    def __call__(self, stage: Stage | None) -> None:
        if stage is not None:
            nvtx.range_pop()
        if stage in self._next:
            nvtx.range_push(str(self._next[stage]))


class NvtxEagerRunner(EagerRunner):
    """This eager runner marks a range for each stage."""

    def __init__(self, spec: Speculator, state: DecodeState) -> None:
        super().__init__(spec, state)
        self._mark = StageRanges(state.spec_tokens, is_parallel=spec.is_parallel)

    def step(self, batch_size: int) -> None:
        iteration(self.spec, self.state.rows(batch_size), self._mark)


class NvtxGraphRunner(GraphRunner):
    """This graph runner marks a range around every replay, with its phase, bucket and tokens."""

    def __init__(
        self, spec: Speculator, state: DecodeState, plan: CapturePlan, graphs: GraphSet
    ) -> None:
        super().__init__(spec, state, plan, graphs)
        self._eager = NvtxEagerRunner(spec, state)

    def step(self, batch_size: int) -> None:
        bucket = self.plan.bucket_for(batch_size)
        if bucket is None:
            self._eager.step(batch_size)
            return
        for captured in self.graphs.captured(bucket.batch_size):
            cost = captured.cost
            with named_range(
                f"replay {cost.phase}, {cost.bucket} requests, {cost.num_tokens} tokens"
            ):
                captured.graph.replay()
