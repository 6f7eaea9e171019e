"""A runner makes one iteration over a batch, eager or by replay. One decode loop serves all."""

from typing import Protocol

from cgbench.engine.graphs import GraphSet
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.state import DecodeState
from cgbench.planning import CapturePlan
from cgbench.words import Mode, Scope

CellKey = tuple[int, Scope]
"""A cell key is (spec_tokens, scope)."""


class Runner(Protocol):
    """A runner advances a ``DecodeState`` by one iteration.

    A scope is what was asked for, and a mode is what runs.
    """

    scope: Scope
    state: DecodeState

    def num_rows(self, batch_size: int) -> int:
        """Return the rows that an iteration of ``batch_size`` requests computes, its padding
        included."""
        ...

    def mode(self, batch_size: int) -> Mode:
        """Return the mode that runs for ``batch_size`` requests."""
        ...

    def step(self, batch_size: int) -> None:
        """Run one iteration over the requests in the first ``batch_size`` rows, without a sync."""
        ...


class EagerRunner:
    """An eager runner launches every kernel from the host, over exactly the requests there are."""

    scope = Scope.EAGER

    def __init__(self, spec: Speculator, state: DecodeState) -> None:
        self.spec = spec
        self.state = state

    def num_rows(self, batch_size: int) -> int:
        return batch_size

    def mode(self, batch_size: int) -> Mode:
        return Mode.EAGER

    def step(self, batch_size: int) -> None:
        iteration(self.spec, self.state.rows(batch_size))


class GraphRunner:
    """A graph runner replays the smallest bucket that holds the batch.

    Above the largest bucket it runs eager.
    """

    def __init__(
        self, spec: Speculator, state: DecodeState, plan: CapturePlan, graphs: GraphSet
    ) -> None:
        self.scope = graphs.scope
        self.state = state
        self.plan = plan
        self.graphs = graphs
        self._eager = EagerRunner(spec, state)

    def num_rows(self, batch_size: int) -> int:
        bucket = self.plan.bucket_for(batch_size)
        return batch_size if bucket is None else bucket.batch_size

    def mode(self, batch_size: int) -> Mode:
        return Mode.EAGER if self.plan.bucket_for(batch_size) is None else Mode.GRAPH

    def step(self, batch_size: int) -> None:
        bucket = self.plan.bucket_for(batch_size)
        if bucket is None:
            self._eager.step(batch_size)
        else:
            self.graphs.replay(bucket.batch_size)
