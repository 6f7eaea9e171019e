"""Judge two results of an engine's own benchmark, by the rules that judge two runs.

A request is an observation. Its neighbours in time share batches with it, so correlated neighbours
count for fewer, as blocks do. If a file holds several results of the same settings, each result is
one observation. A metric that a file does not hold is a line that decides nothing and gives the
reason.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log
from pathlib import Path

import numpy as np

from cgbench.errors import BadInputError
from cgbench.gate.bench_files import BenchFile, read_bench_file
from cgbench.gate.bench_run import BenchRun
from cgbench.gate.comparison import Comparison, Rules, answer, is_gated
from cgbench.gate.evidence import LinePlace, Observed
from cgbench.gate.questions import NO_EFFECT, Question, rate_questions
from cgbench.gate.verdicts import (
    ACCEPTANCE,
    DEFAULT_GATE,
    ITL,
    LATENCY,
    THROUGHPUT,
    TPOT,
    TTFT,
    Gate,
    Line,
    Metric,
)
from cgbench.statistics import Estimate, adjusted_level, difference, log_length_estimate
from cgbench.words import Verdict

METRICS = (TPOT, LATENCY, TTFT, ITL, THROUGHPUT, ACCEPTANCE)
BENCH_GATE = Gate(frozenset({TPOT.name, LATENCY.name, ACCEPTANCE.name}))
"""What decides where ``--gate`` is left out: TTFT depends on the queue more than on decode."""

COUNTED = "requests, or results where a file holds several (drafts for acceptance)"

Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """A group is the results of the same settings in one file. ``name`` is BASE or NEW."""

    name: str
    runs: tuple[BenchRun, ...]

    def observed(self, metric: Metric) -> Observed | None:
        """Return samples by request, or by result if there are several."""
        if len(self.runs) == 1:
            values = self.runs[0].samples.get(metric.name, ())
            above = [value for value in values if value > 0]
            return Observed(np.array(above)) if len(above) > 1 else None
        middles = [_middle(run, metric) for run in self.runs]
        found = [each for each in middles if each]
        is_whole = len(found) == len(middles)
        return Observed(np.array(found), by_process=True) if is_whole else None

    def single(self, metric: Metric) -> float | None:
        """Return the one figure of a metric without samples."""
        return next((_middle(run, metric) for run in self.runs), None)

    @property
    def counts(self) -> list[tuple[float, float]]:
        """Return (accepted, drafted) of each draft position, over all results."""
        lengths = {len(run.counts) for run in self.runs}
        if len(lengths) != 1 or 0 in lengths:
            return []
        by_position = zip(*(run.counts for run in self.runs), strict=True)
        return [(sum(a for a, _ in each), sum(d for _, d in each)) for each in by_position]

    @property
    def hint(self) -> str:
        return self.runs[0].hint


def compare_bench_files(base: Path, new: Path, rules: Rules) -> Comparison:
    """Judge the result in the file ``new`` against that in ``base``.

    Raise ``RunDirectoryError``, naming the file, if one is no result of a known tool, and
    ``BadInputError`` if one of them is a folder.
    """
    for name, path in (("BASE", base), ("NEW", new)):
        if path.is_dir():
            raise BadInputError(
                f"{name} {path}: is a folder. Give two files or two run directories"
            )
    files = read_bench_file("BASE", base), read_bench_file("NEW", new)
    if rules.gate == DEFAULT_GATE:
        rules = replace(rules, gate=BENCH_GATE)
    level, lines = rules.confidence, [*_blockers(*files)]
    if not lines:
        level, lines = _judge(*files, rules)
    return Comparison(
        base=base,
        new=new,
        model=_title(*files),
        rules=rules,
        level=level,
        differences=tuple(_differences(*files)),
        lines=tuple(sorted(lines, key=lambda line: not line.gated)),
        counted=COUNTED,
    )


def _title(base: BenchFile, new: BenchFile) -> str:
    """Return the tool and the model, and the settings if there are no others."""
    model = new.runs[0].model
    names = [new.tool if model is None else f"{new.tool} of {model}"]
    shared = {*_groups(base), *_groups(new)}
    return ", ".join([*names, *(_words(each) for each in shared if len(shared) == 1)])


def _words(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings)


def _blockers(base: BenchFile, new: BenchFile) -> Iterator[Line]:
    if base.tool != new.tool:
        yield _blocked(f"tool: {base.tool} in BASE, {new.tool} in NEW")
        return
    models = [{run.model for run in each.runs if run.model} for each in (base, new)]
    if all(models) and models[0].isdisjoint(models[1]):
        names = ["/".join(sorted(each)) for each in models]
        yield _blocked(f"model: {names[0]} in BASE, {names[1]} in NEW")
    groups = _groups(base), _groups(new)
    if groups[0].keys().isdisjoint(groups[1]):
        yield from map(_blocked, _unlike(*(dict(next(iter(each))) for each in groups)))


def _blocked(reason: str) -> Line:
    return Line(what="result", verdict=Verdict.NOT_COMPARABLE, gated=True, reason=reason)


def _unlike(base: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*base, *new]):
        if base.get(name) != new.get(name):
            yield f"{name}: {base.get(name)} in BASE, {new.get(name)} in NEW"


def _differences(base: BenchFile, new: BenchFile) -> Iterator[str]:
    """Yield how the inputs differ. That decides nothing, because a result has no digest of them."""
    totals = [
        sorted(run.input_tokens for run in each.runs if run.input_tokens) for each in (base, new)
    ]
    if all(totals) and totals[0] != totals[1]:
        yield f"input tokens: {totals[0][0]:g} in BASE, {totals[1][0]:g} in NEW"


def _groups(file: BenchFile) -> dict[Settings, list[BenchRun]]:
    found: defaultdict[Settings, list[BenchRun]] = defaultdict(list)
    for run in file.runs:
        found[tuple(run.settings.items())].append(run)
    return dict(found)


def _judge(base: BenchFile, new: BenchFile, rules: Rules) -> tuple[float, list[Line]]:
    """Return the level of every interval, and the lines of all groups."""
    groups = _groups(base), _groups(new)
    questions, lines = list[Question](), list[Line]()
    every = dict.fromkeys([*groups[0], *groups[1]])
    for settings in every:
        where = LinePlace(scope="", place=_words(settings) if len(every) > 1 else "")
        sides = [
            _Group(name, tuple(each[settings])) if settings in each else None
            for name, each in zip(("BASE", "NEW"), groups, strict=True)
        ]
        if sides[0] is None or sides[1] is None:
            missing = "BASE" if sides[0] is None else "NEW"
            lines.append(replace(_blocked(f"missing in {missing}"), place=where["place"]))
            continue
        questions += _questions(sides[0], sides[1], where)
        lines += _failures(sides[0], sides[1], where)
    # A metric without samples is asked about too, and decides nothing.
    tests = [each for each in questions if each.is_test and not each.reason]
    level = adjusted_level(rules.confidence, sum(is_gated(each, rules.gate) for each in tests))
    answers = [_answered(each, rules, level) for each in questions]
    if questions and not any(line.gated for line in answers):
        names = ", ".join(sorted(rules.gate.metrics))
        lines.append(_blocked(f"no sample of what is gated ({names}) is in both files"))
    return level, [*answers, *lines]


def _answered(question: Question, rules: Rules, level: float) -> Line:
    line = replace(answer(question, rules, level), scope=None)
    if question.reason:
        return replace(line, gated=False, verdict=Verdict.NOT_COMPARABLE)
    return line


def _failures(base: _Group, new: _Group, where: LinePlace) -> Iterator[Line]:
    failed = [_total(each) for each in (base, new)]
    if None in failed:
        return
    old, now = failed
    assert old is not None and now is not None
    verdict = Verdict.REGRESSED if now > old else Verdict.IMPROVED if now < old else Verdict.SAME
    yield Line(
        what="failed requests", verdict=verdict, gated=True, place=where["place"], base=old, new=now
    )


def _total(group: _Group) -> float | None:
    found = [run.failed for run in group.runs if run.failed is not None]
    return float(sum(found)) if len(found) == len(group.runs) else None


def _questions(base: _Group, new: _Group, where: LinePlace) -> Iterator[Question]:
    for metric in METRICS:
        if metric is ACCEPTANCE and base.counts and len(base.counts) == len(new.counts):
            yield from _counted(base.counts, new.counts, where)
            continue
        observed = base.observed(metric), new.observed(metric)
        if observed[0] is not None and observed[1] is not None:
            yield _sampled(metric, where, observed[0], observed[1])
        else:
            yield _unsampled(metric, where, (base, new), observed)


def _sampled(metric: Metric, where: LinePlace, base: Observed, new: Observed) -> Question:
    sides = base.log_estimate(), new.log_estimate()
    is_one = np.array_equal(base.values, new.values)
    return Question(
        metric,
        where,
        exp(sides[0].value),
        exp(sides[1].value),
        NO_EFFECT if is_one else difference(sides[1], sides[0]),
        (len(base.values), len(new.values)),
        effective=(base.effective, new.effective),
    )


def _unsampled(
    metric: Metric,
    where: LinePlace,
    groups: tuple[_Group, _Group],
    observed: Sequence[Observed | None],
) -> Question:
    """Ask about a metric without samples on one side. It is shown, and never gated."""
    figures = [each.single(metric) for each in groups]
    missing = [g.name for g, value in zip(groups, figures, strict=True) if value is None]
    if missing:
        reason = f"not in {' and '.join(missing)}"
        return Question(metric, where, figures[0], figures[1], reason=reason)
    without = [g for g, seen in zip(groups, observed, strict=True) if seen is None]
    names = " and ".join(group.name for group in without)
    hint = "Repeat the benchmark" if metric is THROUGHPUT else without[0].hint
    reason = f"no samples in {names}" + (f". {hint}" if hint else "")
    base, new = figures
    assert base is not None and new is not None
    is_ratio = base > 0 and new > 0
    effect = Estimate(log(new / base), inf, 1) if is_ratio else None
    return Question(metric, where, base, new, effect, reason=reason)


def _counted(
    base: list[tuple[float, float]], new: list[tuple[float, float]], where: LinePlace
) -> Iterator[Question]:
    """Ask about the mean acceptance length and each draft position's rate, from counts."""
    sides = [
        log_length_estimate([accepted for accepted, _ in each], each[0][1]) for each in (base, new)
    ]
    rows = round(base[0][1]), round(new[0][1])
    effect = NO_EFFECT if base == new else difference(sides[1], sides[0])
    yield Question(ACCEPTANCE, where, exp(sides[0].value), exp(sides[1].value), effect, rows)
    yield from rate_questions(where, base, new)


def _middle(run: BenchRun, metric: Metric) -> float | None:
    """Return the median of a result's samples, or the figure that the tool computed."""
    values = [value for value in run.samples.get(metric.name, ()) if value > 0]
    return float(np.median(values)) if values else run.single.get(metric.name)
