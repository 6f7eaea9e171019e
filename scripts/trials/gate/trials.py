"""Comparisons by the dozen: every pair of true re-runs, runs resampled, plain against planted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np

from cgbench.errors import ExitCode
from cgbench.gate.comparison import Comparison, Rules, judge
from cgbench.gate.evidence import Evidence, Observed, Place
from cgbench.gate.pairs import blockers
from cgbench.gate.verdicts import ITERATION, TPOT, Line
from cgbench.words import Verdict
from gate.plant import Spot
from gate.recording import PLANTED

STRETCH = 4
"""Rounds drawn together, so that neighbours stay as correlated as they were."""

MAX_STRETCHES = 4096

COLUMNS = {ITERATION.title: "iteration", TPOT.title: "wall"}
"""The times that hold the planted length, and where evidence has them."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a trial said of one time of a cell: relative change, its interval, and the truth."""

    what: str
    place: Place
    verdict: Verdict
    change: float
    low: float
    high: float
    planted: float

    @property
    def covers(self) -> bool:
        return self.low <= self.planted <= self.high


@dataclass(frozen=True, slots=True)
class Trial:
    """One comparison: its exit code, each gated cell's verdicts, and the times' effects."""

    kind: str
    base: str
    new: str
    exit_code: int
    cells: dict[Place, frozenset[Verdict]]
    effects: tuple[Effect, ...]

    @property
    def is_regressed(self) -> bool:
        return self.exit_code == ExitCode.ANSWER_IS_NO


def read_runs(path: Path, names: Sequence[str], kind: str) -> list[Evidence]:
    """The recorded runs of one kind, in the order made: what a kill left besides is none."""
    return [Evidence.read(name, path / kind / name) for name in names]


def incomparable(runs: Sequence[Evidence]) -> Iterator[str]:
    """What keeps any run from being compared with the first one: such a trial says nothing, and
    must not count as one without an alarm."""
    for run in runs[1:]:
        yield from (f"{run.path}: {reason}" for reason in blockers(runs[0], run))


def rerun_trials(plain: Sequence[Evidence], rules: Rules) -> Iterator[Trial]:
    """Every pair of true re-runs, the earlier one as BASE."""
    for base, new in combinations(plain, 2):
        yield _trial("re-run", judge(base, new, rules), {})


def resampled_trials(
    plain: Sequence[Evidence], rules: Rules, count: int, seed: int
) -> Iterator[Trial]:
    """``count`` comparisons of a run with itself measured again: its rounds drawn twice."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        run = plain[number % len(plain)]
        yield _trial("resampled", judge(resampled(run, rng), resampled(run, rng), rules), {})


def planted_trials(
    plain: Sequence[Evidence],
    planted: Sequence[Evidence],
    rules: Rules,
    seconds: dict[Place, float],
) -> Iterator[Trial]:
    """Every plain run against every planted one. The truth is the planted length over the mean of
    the plain runs' values."""
    shares = {
        (place, what): length / _typical(plain, place, column)
        for place, length in seconds.items()
        for what, column in COLUMNS.items()
    }
    for base, new in product(plain, planted):
        yield _trial(PLANTED, judge(base, new, rules), shares)


def _typical(runs: Sequence[Evidence], place: Place, column: str) -> float:
    return float(np.mean([np.median(run.observed[place, column].values) for run in runs]))


def resampled(run: Evidence, rng: np.random.Generator) -> Evidence:
    """``run`` with rounds drawn with replacement, ``STRETCH`` neighbours at a time, all cells of
    a batch size together."""
    sizes = sorted({place.batch_size for place, _ in run.observed})
    starts = {size: rng.random(MAX_STRETCHES) for size in sizes}
    observed = {
        (place, column): Observed(_redrawn(each.values, starts[place.batch_size]), each.by_process)
        for (place, column), each in run.observed.items()
    }
    return replace(run, observed=observed)


def _redrawn(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The same starts, as shares of the run, for every cell."""
    n = len(values)
    firsts = (starts * n).astype(int)[: -(-n // STRETCH)]
    rows = (firsts[:, None] + np.arange(STRETCH)).ravel() % n
    return values[rows[:n]]


def _trial(kind: str, found: Comparison, shares: dict[tuple[Place, str], float]) -> Trial:
    cells: dict[Place, set[Verdict]] = {}
    for line in found.gated:
        if line.batch_size is not None:
            cells.setdefault(_place(line), set()).add(line.verdict)
    return Trial(
        kind=kind,
        base=found.base.name,
        new=found.new.name,
        exit_code=int(found.exit_code),
        cells={place: frozenset(verdicts) for place, verdicts in cells.items()},
        effects=tuple(_effects(found, shares)),
    )


def _effects(found: Comparison, shares: dict[tuple[Place, str], float]) -> Iterator[Effect]:
    for line in found.gated:
        if line.what not in COLUMNS or line.low is None or line.high is None:
            continue
        assert line.effect is not None
        truth = shares.get((_place(line), line.what), 0.0)
        values = (line.effect, line.low, line.high, truth)
        yield Effect(line.what, _place(line), line.verdict, *values)


def _place(line: Line) -> Place:
    assert line.scope and line.spec_tokens is not None and line.batch_size is not None
    return Place(line.scope, line.spec_tokens, line.batch_size)


def places(seconds: Mapping[Spot, float]) -> dict[Place, float]:
    """Planted seconds, by the comparison's name of a cell."""
    return {Place(*spot): length for spot, length in seconds.items()}
