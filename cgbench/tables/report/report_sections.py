"""Write a report section by section: words, a chart, and the table behind it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cgbench.advice.advise import Advice, Question, advise
from cgbench.advice.slow_reasons import reason_lines
from cgbench.advice.surface import Surface, grid, surface_of
from cgbench.errors import CgbenchError
from cgbench.request.command_line import command_line
from cgbench.rundir.schema import CAPTURE
from cgbench.rundir.store import RunDirectory
from cgbench.tables.latency import DEFINITIONS, SHOWN, Shown
from cgbench.tables.part import Part, Row
from cgbench.tables.report import report_charts as charts
from cgbench.tables.report.report_runs import ReportRuns, marks, ran_eager
from cgbench.tables.surface import error_line, surface_part
from cgbench.tables.tune import conclusions, parts
from cgbench.words import PIECES

BAR_IN = 0.28
"""Height of a horizontal bar, in inches."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A ``Chart`` is a drawing of a section. ``title`` is what a screen reader reads out for it."""

    title: str
    draw: charts.Draw
    height_in: float = charts.HEIGHT_IN


@dataclass(frozen=True)
class Section:
    """A ``Section`` is one section of a report. ``notes`` say what the columns of its tables mean.
    Its ``charts`` are drawn by the code that shows them, because Markdown shows none.
    """

    title: str
    words: tuple[str, ...] = ()
    tables: tuple[Part, ...] = ()
    charts: tuple[Chart, ...] = ()
    code: str = ""
    notes: tuple[str, ...] = ()


def sections_of(runs: ReportRuns) -> list[Section]:
    """Return the sections in the order of a page. One that has nothing to show is left out."""
    advice = {name: one for name, run in runs if (one := _advice(run)) is not None}
    found = [
        _summary(runs, advice),
        _latency(runs),
        _anatomy(runs),
        _floor(runs),
        _which_k(runs, advice),
        _padding(runs),
        _ledger(runs),
        _acceptance(runs),
        _environment(runs),
    ]
    return [section for section in found if section is not None]


def _bars_in(rows: pd.DataFrame) -> float:
    return 1.2 + BAR_IN * len(rows)


def _advice(run: RunDirectory) -> Advice | None:
    """Return the advice on a run, or None if it has nothing to compare. The other sections are
    still worth showing.
    """
    try:
        return advise([run], Question())
    except CgbenchError:
        return None


def _summary(runs: ReportRuns, advice: Mapping[str, Advice]) -> Section:
    words = [
        line if runs.is_one else f"{name}: {line}"
        for name, run in runs
        for line in _said(runs, name, run, advice.get(name))
    ]
    return Section("Summary", tuple(words))


def _said(runs: ReportRuns, name: str, run: RunDirectory, advice: Advice | None) -> Iterator[str]:
    record = run.record
    machine = record.environment.get("gpu") or record.environment.get("cpu") or "unknown machine"
    noted = "; ".join(marks(run))
    yield f"{record.model['label']} on {machine}{f' ({noted})' if noted else ''}."
    rows = runs.best[runs.best["run"] == name]
    for size in _ends(rows["batch_size"]):
        yield from _of_batch(rows[rows["batch_size"] == size])
    slow = reason_lines(run) if advice is None else advice.why_slow
    yield from (f"Slow: {line.removeprefix('slow: ')}." for line in slow)
    bad = run.tables.latency["status"].value_counts().drop("ok", errors="ignore")
    yield from (f"{count} cells are {status}." for status, count in bad.items())


def _ends(sizes: "pd.Series[int]") -> list[int]:
    return sorted({int(sizes.min()), int(sizes.max())}) if len(sizes) else []


def _of_batch(rows: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence on the largest k of one batch size."""
    row = rows.sort_values("spec_tokens").iloc[-1].to_dict()
    share = row["floor_frac"]
    floor = "" if pd.isna(share) else f", at {share:.0%} of what the device could do"
    eager = row["speedup_vs_eager"]
    times = "" if pd.isna(eager) else f", {eager:.1f}x as fast as without graphs"
    yield (
        f"Batch size {row['batch_size']}, k = {row['spec_tokens']}: an iteration takes "
        f"{row['iteration_p50_ms']:.3g} ms in scope {row['scope']}{times}{floor}."
    )


def _latency(runs: ReportRuns) -> Section:
    rows = runs.latency
    shown = [each for each in SHOWN if rows[each.column].notna().any()]
    title = "Every cell"
    return Section(
        "Latency by batch size",
        ("Lines are medians at each run's largest k. Whiskers are 95 % intervals.",),
        (_frame_part(title, rows, shown, runs),),
        (Chart("Iteration latency by batch size", charts.latency_chart(runs)),)
        if len(runs.drawn)
        else (),
        notes=_definitions(),
    )


def _definitions() -> tuple[str, ...]:
    """Return what the columns mean, a line each: the list's dashes are the page's own."""
    first, points = DEFINITIONS.split("\n\n")
    return (first, *f"\n{points}".split("\n- ")[1:])


def _anatomy(runs: ReportRuns) -> Section | None:
    rows = charts.anatomy_rows(runs)
    if rows.empty:
        return None
    shown = [
        *_key(),
        *(Shown(f"{p.value} [ms]", f"{p.value}_p50_ms", "{:.3f}") for p in PIECES),
        Shown("host gap [ms]", "host_gap_p50_ms", "{:z.3f}"),
        Shown("iteration p50 [ms]", "iteration_p50_ms", "{:.3f}"),
    ]
    words = (
        "Stages come from a second, instrumented pass, so they need not add up to the iteration.",
    )
    return Section(
        "Anatomy of an iteration",
        words,
        (_frame_part("Stages", rows, shown, runs),),
        (Chart("Stages of an iteration", charts.anatomy_chart(runs), _bars_in(rows)),),
    )


def _floor(runs: ReportRuns) -> Section | None:
    rows = charts.floor_rows(runs)
    if rows.empty:
        return None
    above = rows["iteration_p50_ms"] - rows["floor_ms"]
    shown = [
        *_key(),
        Shown("floor [ms]", "floor_ms", "{:.3f}"),
        Shown("above [ms]", "above_ms", "{:.3f}"),
        Shown("floor share", "floor_frac", "{:.1%}"),
    ]
    words = (
        "The floor is the least time that the device could take, by its measured rates. What is "
        "above it is left to win.",
    )
    return Section(
        "Floor, and what is above it",
        words,
        (_frame_part("Floor", rows.assign(above_ms=above), shown, runs),),
        (Chart("Floor and the time above it", charts.floor_chart(runs), _bars_in(rows)),),
    )


def _which_k(runs: ReportRuns, advice: Mapping[str, Advice]) -> Section | None:
    found = [(name, each) for name, one in advice.items() for each in one.break_evens]
    if not found:
        return None
    surfaces = {name: surface_of(one.times) for name, one in advice.items()}
    words = [
        line if runs.is_one else f"{name}: {line}"
        for name, one in advice.items()
        for line in (*_concluded(one), *map(error_line, filter(None, [surfaces[name]])))
    ]
    tables = [
        part if runs.is_one else Part(f"{name}: {part.title}", part.headings, part.rows, part.left)
        for name, one in advice.items()
        for part in (*parts(one), *_surface_parts(one, surfaces[name]))
    ]
    return Section(
        "Which k",
        ("Above its line a k pays. Below it, it costs. cgbench tune says more.", *words),
        tuple(tables),
        (
            Chart("Iteration latency of every k by batch size", charts.k_chart(runs)),
            Chart(
                "Break-even acceptance length by batch size", charts.break_even_chart(runs, found)
            ),
        ),
    )


def _concluded(advice: Advice) -> Iterator[str]:
    """Return the conclusions without the losses, which the summary has."""
    return (line for line in conclusions(advice) if not line.startswith("slow: "))


def _surface_parts(advice: Advice, surface: Surface | None) -> Iterator[Part]:
    if surface is not None:
        yield surface_part(surface, grid(advice.times))


def _padding(runs: ReportRuns) -> Section | None:
    rows = [
        (
            name,
            str(plan["spec_tokens"]),
            str(plan.get("policy", "")),
            " ".join(map(str, sorted(plan["batch_sizes"]))),
            _percent(plan.get("mean_padding")),
            str(plan.get("eager_batch_sizes", "")),
        )
        for name, run in runs
        for plan in run.record.plans
    ]
    if not rows:
        return None
    headings = ("run", "k", "policy", "buckets [req]", "mean padding", "batch sizes eager")
    drawn = Chart("Bucket by batch size", charts.padding_chart(runs))
    part = Part("Capture plans", headings, tuple(rows), ("run", "policy", "buckets [req]"))
    return Section("Padding", (), (_without_run(part, runs),), (drawn,))


def _ledger(runs: ReportRuns) -> Section | None:
    frames = [run.tables.capture.assign(run=name) for name, run in runs]
    rows = pd.concat(frames, ignore_index=True)
    if rows.empty:
        return None
    shown = [
        Shown("run", "run"),
        *(
            Shown(_heading(each.name), each.name, "{:,.2f}" if each.dtype == "float64" else "{:,}")
            for each in CAPTURE
            if not each.is_text
        ),
    ]
    shown.insert(1, Shown("phase", "phase"))
    words = ("What each graph cost, once. Break-even is in replays of its bucket.",)
    return Section("Capture ledger", words, (_frame_part("Graphs", rows, shown, runs),))


def _acceptance(runs: ReportRuns) -> Section | None:
    counted = charts.acceptance_counts(runs)
    if not counted:
        return None
    rows = [
        (
            name,
            str(row["spec_tokens"]),
            str(row["position"]),
            f"{row['accepted']:,}",
            f"{row['drafted']:,}",
            f"{row['accepted'] / row['drafted']:.3f}" if row["drafted"] else "",
        )
        for name, counts in counted
        for row in counts.to_dict("records")
    ]
    headings = ("run", "k", "position", "accepted", "drafted", "rate")
    part = Part("Acceptance by position", headings, tuple(rows), ("run",))
    words = [
        f"{mark}." if runs.is_one else f"{name}: {mark}."
        for name, run in runs
        for mark in marks(run)
        if "acceptance" in mark
    ]
    return Section(
        "Acceptance per position",
        ("Rates are unconditional: of all iterations, those that kept the draft.", *words),
        (_without_run(part, runs),),
        (Chart("Acceptance rate by draft position", charts.acceptance_chart(runs, counted)),),
    )


def _environment(runs: ReportRuns) -> Section:
    names = list(dict.fromkeys(key for _, run in runs for key in run.record.environment))
    rows = [
        (key, *(_text(run.record.environment.get(key)) for _, run in runs))
        for key in ("model", *names)
        if key != "model"
    ]
    head = ("field", *runs.names)
    lines = "\n".join(command_line("run", run.record.arguments) for _, run in runs)
    return Section(
        "Environment", (), (Part("Machine and versions", head, tuple(rows), head),), code=lines
    )


def _key() -> tuple[Shown, ...]:
    return (
        Shown("run", "run"),
        Shown("scope", "scope"),
        Shown("k", "spec_tokens"),
        Shown("batch [req]", "batch_size"),
        Shown("context [tok]", "context_len"),
    )


def _frame_part(title: str, rows: pd.DataFrame, shown: Sequence[Shown], runs: ReportRuns) -> Part:
    names = [each.column for each in shown]
    columns = [*shown] if "run" in names else [Shown("run", "run"), *shown]
    if runs.is_one:
        columns = [each for each in columns if each.column != "run"]
    if "mode" in rows:
        eager = ran_eager(rows)
        rows = rows.assign(scope=rows["scope"].mask(eager, rows["scope"] + " (eager)"))
    cells = rows[[each.column for each in columns]].astype(object).to_dict("records")
    left = tuple(
        each.heading for each in columns if each.column in ("run", "scope", "status", "phase")
    )
    return Part(
        title,
        tuple(each.heading for each in columns),
        tuple(tuple(each.text(row) for each in columns) for row in cells),
        left,
    )


def _without_run(part: Part, runs: ReportRuns) -> Part:
    if not runs.is_one:
        return part
    rows: tuple[Row, ...] = tuple(row[1:] for row in part.rows)
    return Part(part.title, part.headings[1:], rows, part.left)


LEDGER_HEADINGS = {"spec_tokens": "k", "bucket": "bucket [req]", "num_tokens": "tokens"}


def _heading(name: str) -> str:
    """Return ``warmup_ms`` as ``warmup [ms]``."""
    for unit in ("ms", "bytes", "replays"):
        if name.endswith(f"_{unit}"):
            return f"{name.removesuffix(f'_{unit}').replace('_', ' ')} [{unit}]"
    return LEDGER_HEADINGS.get(name, name)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _text(value: object) -> str:
    return "" if value is None else str(value)
