"""Decide a comparison's verdicts by rules, with the standard library alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cgbench.errors import BadInputError, ExitCode, foremost
from cgbench.words import PIECES, Scope, StageKind, Status, Verdict


@dataclass(frozen=True, slots=True)
class Metric:
    """A ``Metric`` is a measured quantity of a cell.

    ``shown_per_unit`` turns what is kept (seconds, bytes, a length or a rate) into the unit that a
    person reads.
    """

    name: str
    title: str
    unit: str
    shown_per_unit: float = 1.0
    larger_is_worse: bool = True
    is_time: bool = True
    is_rate: bool = False
    """The metric is a proportion, so its effect is a difference and not a ratio."""


def _time(name: str, title: str) -> Metric:
    return Metric(name, title, "ms", 1e3)


ITERATION = _time(StageKind.ITERATION.value, "iteration latency")
TPOT = _time("tpot", "TPOT")
ACCEPTANCE = Metric(
    "acceptance", "mean acceptance length", "tokens", larger_is_worse=False, is_time=False
)
MEMORY = Metric("memory", "peak memory", "MB", 1e-6, is_time=False)
STAGES = tuple(_time(piece.value, piece.value) for piece in PIECES)
HOST_GAP = _time("host-gap", "host gap")
CAPTURE = _time("capture", "capture time")

FACTS = "facts"
GATED_BY_DEFAULT = tuple(metric.name for metric in (ITERATION, TPOT, ACCEPTANCE, MEMORY))
GATE_WORDS = (
    *GATED_BY_DEFAULT,
    *(stage.name for stage in STAGES),
    HOST_GAP.name,
    CAPTURE.name,
    FACTS,
    Scope.EAGER.value,
)


def acceptance_rate(position: int) -> Metric:
    """Return the metric of one draft position's unconditional acceptance rate. Positions count from
    1.
    """
    title = f"acceptance rate, draft {position}"
    return Metric(
        f"acceptance-{position}", title, "", larger_is_worse=False, is_time=False, is_rate=True
    )


@dataclass(frozen=True, slots=True)
class Gate:
    """A ``Gate`` decides which metrics set the exit code, and whether eager cells do. The others
    are only reported.
    """

    metrics: frozenset[str] = frozenset(GATED_BY_DEFAULT)
    with_eager: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the gate of a ``--gate`` value: names of metrics, and ``eager`` to add the eager
        cells.

        Raise ``BadInputError`` for an unknown name.
        """
        words = {word.strip() for word in text.split(",")}
        if unknown := sorted(words - set(GATE_WORDS)):
            raise BadInputError(f"--gate {unknown[0]}: unknown. Choose of {','.join(GATE_WORDS)}")
        metrics = frozenset(words - {Scope.EAGER.value})
        return cls(metrics or frozenset(GATED_BY_DEFAULT), Scope.EAGER.value in words)

    def holds(self, metric: str, scope: str) -> bool:
        """Return whether ``metric`` of a cell of ``scope`` decides."""
        return metric in self.metrics and self.holds_scope(scope)

    def holds_scope(self, scope: str) -> bool:
        """Return whether cells of ``scope`` decide anything."""
        return self.with_eager or scope != Scope.EAGER


DEFAULT_GATE = Gate()


@dataclass(frozen=True, slots=True)
class Interval:
    """An ``Interval`` bounds an effect of NEW against BASE, which is a log ratio or a difference of
    two rates.
    """

    estimate: float
    low: float
    high: float

    def __neg__(self) -> "Interval":
        return Interval(-self.estimate, -self.high, -self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A ``Line`` is one verdict with its evidence.

    ``base`` and ``new`` are in ``unit``. ``effect``, ``low`` and ``high`` are NEW / BASE - 1, or
    NEW - BASE for a rate. They are None if there is no finite number. ``base_blocks`` and
    ``new_blocks`` count what the interval rests on. ``place`` is the rest of where: a graph.
    """

    what: str
    verdict: Verdict
    gated: bool
    scope: str | None = None
    spec_tokens: int | None = None
    batch_size: int | None = None
    place: str = ""
    unit: str = ""
    is_rate: bool = False
    base: float | str | None = None
    new: float | str | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    base_blocks: int | None = None
    new_blocks: int | None = None
    reason: str = ""


def decide(effect: Interval, threshold: float, metric: Metric) -> Verdict:
    """Return the verdict of an effect. ``threshold`` is on the effect's scale.

    Regressed: the interval excludes 0 and the estimate is at least ``threshold`` worse. Faster or
    improved is its mirror. Same: the whole interval lies within ``threshold`` of 0. The rest is
    inconclusive.
    """
    harm = effect if metric.larger_is_worse else -effect
    if harm.low > 0 and harm.estimate >= threshold:
        return Verdict.REGRESSED
    if harm.high < 0 and harm.estimate <= -threshold:
        return Verdict.FASTER if metric.is_time else Verdict.IMPROVED
    if -threshold <= harm.low and harm.high <= threshold:
        return Verdict.SAME
    return Verdict.INCONCLUSIVE


def doubted(verdict: Verdict, metric: Metric) -> Verdict:
    """Return what is left of ``verdict`` in a disturbed cell. No time can be decided there, and
    nothing is ``same``.
    """
    return Verdict.INCONCLUSIVE if metric.is_time or verdict is Verdict.SAME else verdict


MEASURED = frozenset({Status.OK, Status.DISTURBED})


def decide_status(base: Status, new: Status) -> Verdict | None:
    """Return what the two statuses decide alone, or None if both cells have numbers to compare.

    A cell that failed its audit in BASE too has no sound number on either side. A cell that is
    faster than its floor was not measured as it was thought to be.
    """
    if Status.FLOOR_BEATEN in (base, new):
        return Verdict.NOT_COMPARABLE
    if base in MEASURED:
        return None if new in MEASURED else Verdict.REGRESSED
    if new in MEASURED:
        return Verdict.IMPROVED
    return Verdict.SAME if base is new is Status.OOM else Verdict.NOT_COMPARABLE


EXIT_CODES = {
    Verdict.REGRESSED: ExitCode.ANSWER_IS_NO,
    Verdict.NOT_COMPARABLE: ExitCode.CANNOT,
    Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


def exit_code(lines: Iterable[Line]) -> ExitCode:
    """Return the exit code that the gated lines come to."""
    return foremost([EXIT_CODES.get(line.verdict, ExitCode.OK) for line in lines if line.gated])
