"""Run directories to compare: an H200's, in small, with what a test wants changed."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np

from cgbench.engine.graph_cost import GraphCost
from cgbench.gate.evidence import Evidence
from cgbench.rundir.files import Tables
from cgbench.rundir.floor_verdict import with_floor_verdicts
from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import Cell, Sample
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import (
    acceptance_frame,
    capture_frame,
    latency_frame,
    samples_frame,
)
from cgbench.tables.latency import latency_markdown
from cgbench.words import Phase, Scope, Stage, Status
from tests.support.example import make_cell, make_cost, make_record

NUM_BLOCKS = 10
ITERATIONS = 5
BATCH_SIZES = (1, 8)
SCOPES = (Scope.EAGER, Scope.PHASE, Scope.ITERATION)
SPEC_TOKENS = (0, 2)


def unchanged(cell: Cell) -> Cell:
    return cell


@dataclass(frozen=True)
class Made:
    """A run to write. ``slower`` multiplies all times, ``noise`` is a block's and an iteration's,
    relative. ``edit`` gives a cell's facts, or None to leave it out."""

    seed: int = 0
    slower: float = 1.0
    noise: float = 0.002
    num_blocks: int = NUM_BLOCKS
    edit: Callable[[Cell], Cell | None] = unchanged
    record: dict[str, Any] = field(default_factory=dict)
    costs: tuple[GraphCost, ...] = (
        make_cost(Phase.ITERATION, bucket=8),
        make_cost(Phase.ITERATION, bucket=1),
    )
    finish: bool = True

    def write(self, path: Path) -> Path:
        """A run that is as good as another's is written once, and copied."""
        if self.edit is not unchanged or self.record:
            return self._write(path)
        written = _written(
            self.seed, self.slower, self.noise, self.num_blocks, self.costs, self.finish
        )
        return Path(shutil.copytree(written, path, dirs_exist_ok=True))

    def run(self, path: Path) -> RunDirectory:
        """The same as if it were opened, with nothing on disk."""
        record = replace(h200_record(), **self.record)
        return RunDirectory(path, replace(record, complete=self.finish), self._tables(record))

    def _write(self, path: Path) -> Path:
        directory = RunDirectory.create(path, replace(h200_record(), **self.record))
        # All groups at once: every write is read back, which took half of a test's time.
        directory.write_merged(self._tables(directory.record))
        if self.finish:
            directory.finish(latency_markdown)
        return path

    def _tables(self, record: RunRecord) -> Tables:
        if self.edit is unchanged:
            how = self.seed, self.slower, self.noise, self.num_blocks, self.costs
            tables = _plain_tables(*how)
        else:
            tables = self._made_tables()
        return replace(tables, latency=with_floor_verdicts(tables.latency, record))

    def _made_tables(self) -> Tables:
        rng = np.random.default_rng(self.seed)
        made = [make_cell(s, k, b) for b in BATCH_SIZES for k in SPEC_TOKENS for s in SCOPES]
        cells = [cell for cell in map(self.edit, made) if cell is not None]
        samples = samples_frame([row for cell in cells for row in self._samples(rng, cell)])
        latency = latency_frame(cells, samples)
        return Tables(
            latency=latency,
            capture=capture_frame(self.costs, latency),
            acceptance=acceptance_frame(cells),
            samples=samples,
        )

    def _samples(self, rng: np.random.Generator, cell: Cell) -> list[Sample]:
        if cell.status not in (Status.OK, Status.DISTURBED):
            return []
        typical_s = (10e-3 if cell.scope is Scope.EAGER else 2e-3) * self.slower
        shape = (self.num_blocks, ITERATIONS)
        block_noise = rng.normal(size=(self.num_blocks, 1)) * self.noise
        gpu_s = typical_s * np.exp(block_noise + rng.normal(size=shape) * self.noise)
        gap_s = 1e-5 * (1 + rng.random(shape))
        timed = [
            _sample(cell, block, block * ITERATIONS + i, Stage.ITERATION, gpu_s[block, i], gap)
            for block, gaps in enumerate(gap_s)
            for i, gap in enumerate(gaps)
        ]
        stages = Stage.of_iteration(cell.spec_tokens)[:-1]
        share = typical_s / len(stages)
        staged = [_sample(cell, 0, i, stage, share, None) for stage in stages for i in range(3)]
        return [*timed, *staged]


KEPT = TemporaryDirectory(prefix="cgbench-runs-")
"""Of this process; gone when it ends."""


@cache
def _written(
    seed: int,
    slower: float,
    noise: float,
    num_blocks: int,
    costs: tuple[GraphCost, ...],
    finish: bool,
) -> Path:
    made = Made(seed, slower, noise, num_blocks, costs=costs, finish=finish)
    return made._write(Path(KEPT.name) / str(len([*Path(KEPT.name).iterdir()])))


@cache
def _plain_tables(
    seed: int, slower: float, noise: float, num_blocks: int, costs: tuple[GraphCost, ...]
) -> Tables:
    """Those of a run as good as another's, made once: tables are not written to."""
    return Made(seed, slower, noise, num_blocks, costs=costs)._made_tables()


@contextmanager
def read_once(folder: Path) -> Iterator[None]:
    """Evidence of the runs in ``folder`` is read once meanwhile: no test changes them."""
    read = Evidence.read
    known: dict[Path, Evidence] = {}

    def kept(name: str, path: Path) -> Evidence:
        if not path.resolve().is_relative_to(folder):
            return read(name, path)
        if path not in known:
            known[path] = read(name, path)
        return replace(known[path], name=name)

    with mock.patch.object(Evidence, "read", kept):
        yield


def _sample(
    cell: Cell, block: int, iteration: int, stage: Stage, gpu_s: float, gap_s: float | None
) -> Sample:
    wall_s = None if gap_s is None else float(gpu_s + gap_s)
    place = (cell.scope, cell.spec_tokens, cell.batch_size, cell.mode)
    return Sample(*place, block, iteration, stage, float(gpu_s), wall_s)


def h200_record() -> RunRecord:
    return replace(
        make_record(),
        environment={"gpu": "NVIDIA H200", "driver": "580.1", "torch": "2.11.0"},
        model={"label": "tiny (random weights)", "fingerprint": "f1"},
        workload={"version": 1, "num_prompts": 4, "sha256": "w1", "context_band_tokens": 32},
        plans=[{"spec_tokens": 2, "batch_sizes": [1, 8]}],
        warnings=[],
    )


def only(
    change: dict[str, Any], scope: Scope = Scope.ITERATION, spec_tokens: int = 2
) -> Callable[[Cell], Cell]:
    """Changes one (scope, k) at batch size 8."""

    def edit(cell: Cell) -> Cell:
        is_it = (cell.scope, cell.spec_tokens, cell.batch_size) == (scope, spec_tokens, 8)
        return replace(cell, **change) if is_it else cell

    return edit


def without(scope: Scope, batch_size: int = 8) -> Callable[[Cell], Cell | None]:
    """Leaves the cells of a scope at one batch size out."""

    def edit(cell: Cell) -> Cell | None:
        return None if (cell.scope, cell.batch_size) == (scope, batch_size) else cell

    return edit


def without_cells() -> RunDirectory:
    """A run that has no cell, nothing of it on disk."""
    return RunDirectory(Path("run"), replace(h200_record(), complete=True), Tables())
