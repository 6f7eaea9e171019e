"""Turn two runs into lines. Questions come first, because their number sets the intervals'
level.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import expm1, isfinite, log1p
from os import PathLike
from pathlib import Path

from cgbench.errors import ExitCode
from cgbench.gate.bench_files import is_bench_file
from cgbench.gate.evidence import Evidence
from cgbench.gate.facts import cell_facts, graph_facts, plan_facts, size_facts
from cgbench.gate.intervals import interval
from cgbench.gate.pairs import Pair, blockers, differences, other_processor, pairs
from cgbench.gate.questions import (
    Question,
    capture_questions,
    cell_questions,
    is_disturbed,
)
from cgbench.gate.verdicts import (
    DEFAULT_GATE,
    Gate,
    Line,
    Metric,
    decide,
    decide_status,
    doubted,
    exit_code,
)
from cgbench.inputs import check_share
from cgbench.statistics import adjusted_level
from cgbench.words import Status, Verdict

# Times drift if the blocks of a side are worth fewer independent ones than this share of their
# number.
DRIFTING = 0.25


COUNTED = "blocks, or processes of several (rows for acceptance, graphs for capture time)"


@dataclass(frozen=True, slots=True)
class Rules:
    """A ``Rules`` holds what the user decides about a comparison. ``min_effect`` and ``confidence``
    are fractions.

    Raise ``BadInputError`` if one is not above 0 and below 1.
    """

    min_effect: float = 0.02
    confidence: float = 0.95
    gate: Gate = DEFAULT_GATE
    allow_token_change: bool = False

    def __post_init__(self) -> None:
        check_share("--min-effect", self.min_effect)
        check_share("--confidence", self.confidence)


DEFAULT_RULES = Rules()


@dataclass(frozen=True)
class Comparison:
    """A ``Comparison`` holds every line, gated ones first, and what the runs differ in. ``level``
    is the level of each interval.
    """

    base: Path
    new: Path
    model: str
    rules: Rules
    level: float
    differences: tuple[str, ...]
    lines: tuple[Line, ...]
    counted: str = COUNTED
    """What ``n`` counts, in words."""

    @property
    def exit_code(self) -> ExitCode:
        """Return the exit code: 0, 1, 3 or 4."""
        return exit_code(self.lines)

    @property
    def gated(self) -> tuple[Line, ...]:
        """Return the lines that decide."""
        return tuple(line for line in self.lines if line.gated)

    @property
    def counts(self) -> dict[Verdict, int]:
        """Return the number of gated lines by verdict, worst first."""
        found = Counter(line.verdict for line in self.gated)
        return {verdict: found[verdict] for verdict in Verdict if found[verdict]}


def compare(
    base: str | PathLike[str], new: str | PathLike[str], rules: Rules = DEFAULT_RULES
) -> Comparison:
    """Judge the run in the folder ``new`` against that in ``base``. No torch is imported.

    Two files are results of an engine's own benchmark.

    Raise ``RunDirectoryError``, which names the file, if one of them is missing or damaged.
    """
    if is_bench_file(Path(base)) or is_bench_file(Path(new)):
        # Apart, because it judges by what is here.
        from cgbench.gate.bench_comparison import compare_bench_files

        return compare_bench_files(Path(base), Path(new), rules)
    evidence = Evidence.read("BASE", Path(base)), Evidence.read("NEW", Path(new))
    return judge(*evidence, rules)


def judge(base: Evidence, new: Evidence, rules: Rules) -> Comparison:
    """Judge ``new`` against ``base`` by ``rules``, and return the comparison."""
    level, lines = rules.confidence, [_blocked(reason) for reason in blockers(base, new)]
    if not lines:
        level, lines = _judge(base, new, rules)
    return Comparison(
        base=base.path,
        new=new.path,
        model=str(new.record.model.get("label")),
        rules=rules,
        level=level,
        differences=tuple(differences(base, new)),
        lines=tuple(sorted(lines, key=lambda line: not line.gated)),
    )


def _blocked(reason: str) -> Line:
    return Line(what="run", verdict=Verdict.NOT_COMPARABLE, gated=True, reason=reason)


def _judge(base: Evidence, new: Evidence, rules: Rules) -> tuple[float, list[Line]]:
    """Return the level of every interval, and the lines of runs that can be compared."""
    cells = pairs(base, new)
    questions = [*_questions(cells, base, new), *capture_questions(base, new)]
    tests = [each for each in questions if each.is_test and is_gated(each, rules.gate)]
    level = adjusted_level(rules.confidence, len(tests))
    facts = [
        *plan_facts(base, new, rules.gate),
        *size_facts(base, new, rules.gate),
        *graph_facts(base, new, rules.gate),
        *(line for pair in cells for line in _pair_lines(pair, rules)),
    ]
    lines = [*(answer(question, rules, level) for question in questions), *facts]
    left = [pair for pair in cells if rules.gate.holds_scope(pair.place.scope)]
    if any(map(_is_left_out, left)) and not any(map(_has_numbers, left)):
        lines.append(_blocked("every cell is faster than its floor: none can be judged"))
    if not any(line.gated for line in lines):
        lines.append(_blocked("nothing is gated: --gate LIST,eager gates eager cells too"))
    return level, lines


def _is_left_out(pair: Pair) -> bool:
    return any(cell.status is Status.FLOOR_BEATEN for cell in pair.cells)


def _questions(cells: list[Pair], base: Evidence, new: Evidence) -> Iterator[Question]:
    other = other_processor(base, new)
    for pair in filter(_has_numbers, cells):
        disturbed = is_disturbed(pair)
        for question in cell_questions(pair, base, new):
            if other and question.metric.is_time:
                question = replace(question, effect=None, reason="the CPUs differ")
            yield replace(question, is_disturbed=disturbed)


def _has_numbers(pair: Pair) -> bool:
    return pair.base is not None and pair.new is not None and _status_verdict(pair) is None


def _status_verdict(pair: Pair) -> Verdict | None:
    assert pair.base and pair.new
    return decide_status(pair.base.status, pair.new.status)


def _pair_lines(pair: Pair, rules: Rules) -> Iterator[Line]:
    """Yield the lines of a pair that need no interval: a missing cell, its statuses, its facts."""
    where = pair.place.where
    if pair.base is None or pair.new is None:
        yield Line(
            what="cell",
            verdict=Verdict.NOT_COMPARABLE,
            gated=rules.gate.holds_scope(pair.place.scope),
            reason=f"missing in {'BASE' if pair.base is None else 'NEW'}",
            **where,
        )
        return
    if verdict := _status_verdict(pair):
        statuses = pair.base.status, pair.new.status
        yield Line(
            what="status",
            verdict=verdict,
            # A cell without a sound number is left out, because it is no evidence of what changed.
            gated=Status.FLOOR_BEATEN not in statuses,
            base=statuses[0],
            new=statuses[1],
            **where,
        )
        return
    yield from cell_facts(pair, rules.gate, allow_token_change=rules.allow_token_change)


def is_gated(question: Question, gate: Gate) -> bool:
    """Return whether the answer decides the exit code."""
    return gate.holds(question.metric.name, question.where["scope"])


def answer(question: Question, rules: Rules, level: float) -> Line:
    """Return the line of one question, whose interval is at ``level``."""
    metric = question.metric
    line = Line(
        what=metric.title,
        verdict=Verdict.NOT_COMPARABLE,
        gated=is_gated(question, rules.gate),
        unit=metric.unit,
        is_rate=metric.is_rate,
        base=_shown(question.base, metric),
        new=_shown(question.new, metric),
        reason=question.reason,
        **question.where,
    )
    if question.effect is None:
        return line
    found = interval(question.effect, level)
    threshold = rules.min_effect if metric.is_rate else log1p(rules.min_effect)
    verdict = decide(found, threshold, metric)
    reason = question.reason or _why(question, verdict)
    if question.is_disturbed:
        verdict, reason = doubted(verdict, metric), "disturbed"
    blocks = question.blocks or (None, None)
    effect, low, high = (
        _relative(each, metric) for each in (found.estimate, found.low, found.high)
    )
    return replace(
        line,
        verdict=verdict,
        reason=reason,
        effect=effect,
        low=low,
        high=high,
        base_blocks=blocks[0],
        new_blocks=blocks[1],
    )


def _why(question: Question, verdict: Verdict) -> str:
    """Return why nothing could be decided, or nothing if something was."""
    if verdict is not Verdict.INCONCLUSIVE:
        return ""
    blocks = question.blocks
    if blocks is not None and min(blocks) < 2:
        return "one block has no interval"
    if blocks is None or question.effective is None:
        return "the interval is too wide"
    sides = zip(("BASE", "NEW"), blocks, question.effective, strict=True)
    drifts = [
        f"times drift in {name}: {count} blocks count as {effective:.1f}"
        for name, count, effective in sides
        if effective < DRIFTING * count
    ]
    return "; ".join(drifts) or "the interval is too wide"


def _shown(value: float | None, metric: Metric) -> float | None:
    return None if value is None else value * metric.shown_per_unit


def _relative(value: float, metric: Metric) -> float | None:
    """Return the value as a line gives it, or None if it is not finite."""
    if not isfinite(value):
        return None
    return value if metric.is_rate else _ratio_minus_one(value)


def _ratio_minus_one(log_ratio: float) -> float | None:
    # More is wider than any real ratio, and expm1 of it would overflow.
    return expm1(log_ratio) if log_ratio < 100 else None
