"""Compute the share of an iteration that a tensor parallel run's collectives take, from raw
samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from cgbench.rundir.record_parts import CollectiveFacts
from cgbench.rundir.schema import Sample
from cgbench.words import Stage

CellId = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class CollectiveShare:
    """A ``CollectiveShare`` holds two medians of one cell: its collectives alone, back to back, and
    its whole iteration.
    """

    scope: str
    spec_tokens: int
    batch_size: int
    collectives_p50_ms: float
    iteration_p50_ms: float

    @property
    def frac(self) -> float:
        """Return the collectives' share of the iteration. They are timed apart, so noise may take
        it past 1.
        """
        return self.collectives_p50_ms / self.iteration_p50_ms

    @property
    def facts(self) -> CollectiveFacts:
        """Return the share as ``run.json`` keeps it."""
        return CollectiveFacts(
            scope=self.scope,
            spec_tokens=self.spec_tokens,
            batch_size=self.batch_size,
            collectives_p50_ms=self.collectives_p50_ms,
            iteration_p50_ms=self.iteration_p50_ms,
            frac=self.frac,
        )

    @property
    def text(self) -> str:
        """Return the share in a line for the user."""
        return (
            f"collectives: {self.collectives_p50_ms:.3f} of {self.iteration_p50_ms:.3f} ms "
            f"({self.frac:.0%}) in {self.scope} k={self.spec_tokens}, batch size {self.batch_size}"
        )


def collective_shares(samples: Sequence[Sample]) -> Iterator[CollectiveShare]:
    """Yield a share for each cell that has collectives and a timed iteration, in the order of the
    samples.
    """
    collectives = _medians(samples, Stage.COLLECTIVES)
    iterations = _medians(samples, Stage.ITERATION)
    for cell, milliseconds in collectives.items():
        # If every block was discarded, there is nothing to be a share of.
        if cell in iterations:
            yield CollectiveShare(*cell, milliseconds, iterations[cell])


def _medians(samples: Sequence[Sample], stage: Stage) -> dict[CellId, float]:
    by_cell: dict[CellId, list[float]] = {}
    for sample in samples:
        if sample.stage == stage:
            cell = sample.scope.value, sample.spec_tokens, sample.batch_size
            by_cell.setdefault(cell, []).append(sample.gpu_s * 1e3)
    return {cell: median(times) for cell, times in by_cell.items()}
