"""Estimate what a plan's graphs will take of the GPU's memory, before anything is captured.

All graphs share one pool, and the largest is captured first. So the pool holds what the largest
graph needs. It grows with that graph's tokens, mostly because of the logits. Every graph also takes
memory of the driver, which grows with its kernels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from cgbench.planning.phases import PhasePlan
from cgbench.words import Phase

_MIB = 1024**2
_DRAFTS = (Phase.DRAFT_FIRST, Phase.DRAFT_REST)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A ``LedgerRow`` is one captured graph with its memory in bytes, as a run recorded it."""

    phase: Phase
    spec_tokens: int
    num_tokens: int
    pool_bytes: float
    driver_bytes: float


@dataclass(frozen=True, slots=True)
class GraphMemory:
    """A ``GraphMemory`` is a linear model of the memory that graphs take, in bytes.

    ``pool_bytes`` is the shared pool at no token, and ``bytes_per_token`` is what each token of the
    largest graph adds. The other two are the driver's memory for one graph of the target and for
    one of a draft step. ``source`` names where the numbers are from.
    """

    pool_bytes: float
    bytes_per_token: float
    target_graph_bytes: float
    draft_graph_bytes: float
    source: str

    def of(self, *found: PhasePlan) -> float:
        """Return the bytes of all graphs of a plan, or of one plan for each draft length.

        A graph of mixed batches counts as one of the target, and serves every draft length.
        """
        phases = [phase for each in found for phase in each.phases]
        mixed = {tokens for each in found for tokens in each.mixed_tokens}
        drafts = sum(each.num_graphs for each in phases if each.phase in _DRAFTS)
        target = sum(each.num_graphs for each in phases) - drafts + len(mixed)
        tokens = {bucket.num_tokens for each in phases for bucket in each.buckets}
        largest = max(tokens | mixed, default=0)
        if not largest:
            return 0.0
        pool = self.pool_bytes + self.bytes_per_token * largest
        return pool + self.target_graph_bytes * target + self.draft_graph_bytes * drafts


STATED = GraphMemory(
    pool_bytes=22 * _MIB,
    bytes_per_token=0.3 * _MIB,
    target_graph_bytes=5 * _MIB,
    draft_graph_bytes=0.5 * _MIB,
    source="stated model",
)
"""This model holds if nothing was measured. 22 MiB are the library's workspaces. 0.3 MiB are a row
of logits of 150,000 words in bfloat16. 5 MiB are some 1,600 kernels of a model that is not
compiled."""


def fitted(rows: Sequence[LedgerRow], source: str) -> GraphMemory:
    """Return the same model with the numbers of a run's graphs.

    Two pools with different largest graphs give the pool's line. With one pool, the line begins at
    the stated ``pool_bytes``.
    """
    pools = sorted({_pool(alike) for alike in _sets(rows)})
    start, slope = _line(pools)
    target = [row.driver_bytes for row in rows if row.phase not in _DRAFTS]
    drafts = [row.driver_bytes for row in rows if row.phase in _DRAFTS]
    return GraphMemory(
        start,
        slope,
        mean(target) if target else STATED.target_graph_bytes,
        mean(drafts) if drafts else STATED.draft_graph_bytes,
        source,
    )


def measured_bytes(rows: Iterable[LedgerRow]) -> float:
    """Return the bytes that a run's graphs took together."""
    return sum(row.pool_bytes + row.driver_bytes for row in rows)


def _sets(rows: Sequence[LedgerRow]) -> list[list[LedgerRow]]:
    """Return the graphs that shared a pool: one draft length, in phases or whole."""
    sets: dict[tuple[int, bool], list[LedgerRow]] = {}
    for row in rows:
        sets.setdefault((row.spec_tokens, row.phase is Phase.ITERATION), []).append(row)
    return [*sets.values()]


def _pool(rows: Sequence[LedgerRow]) -> tuple[int, float]:
    return max(row.num_tokens for row in rows), sum(row.pool_bytes for row in rows)


def _line(pools: Sequence[tuple[int, float]]) -> tuple[float, float]:
    (least, low), (most, high) = pools[0], pools[-1]
    if most > least and high > low:
        slope = (high - low) / (most - least)
        return low - slope * least, slope
    slope = max(high - STATED.pool_bytes, 0.0) / most
    return high - slope * most, slope
