"""A comparison as people read it: one set of rows for the terminal and for Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cgbench.report.compare.comparison import Comparison
from cgbench.report.compare.verdicts import Line, Verdict

HEADINGS = (
    "verdict",
    "what",
    "scope",
    "k",
    "batch [req]",
    "BASE",
    "NEW",
    "change",
    "interval",
    "n",
)
LEFT = frozenset({"verdict", "what", "scope"})

# A reported line says something where it is neither as before nor undecided.
TOLD = frozenset(Verdict) - {Verdict.SAME, Verdict.INCONCLUSIVE}

SHA256_DIGITS = 64

STYLES = {
    Verdict.REGRESSED: "bold red",
    Verdict.NOT_COMPARABLE: "red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.FASTER: "green",
    Verdict.IMPROVED: "green",
}


def row(line: Line) -> tuple[str, ...]:
    """The texts under ``HEADINGS``."""
    place = f" ({line.place})" if line.place else ""
    unit = f" [{line.unit}]" if line.unit else ""
    return (
        line.verdict + ("" if line.gated else " (reported)"),
        f"{line.what}{unit}{place}",
        line.scope or "",
        *(_text(value) for value in (line.spec_tokens, line.batch_size)),
        _text(line.base),
        _text(line.new),
        change(line, line.effect),
        f"{change(line, line.low)} .. {change(line, line.high)}" if has_interval(line) else "",
        "" if line.base_blocks is None else f"{line.base_blocks}/{line.new_blocks}",
    )


def has_interval(line: Line) -> bool:
    """Whether both ends are finite, and there is something between them."""
    return line.low is not None and line.high is not None and line.low < line.high


def change(line: Line, value: float | None) -> str:
    """``+3.00 %``; ``points`` where it is the difference of two rates."""
    if value is None:
        return ""
    return f"{100 * value:+.2f} {'points' if line.is_rate else '%'}"


def evidence(line: Line) -> str:
    """One line's evidence in words: reason, values, change, interval, what it rests on."""
    unit = f" {line.unit}" if line.unit else ""
    parts = [line.reason]
    if line.base is not None or line.new is not None:
        parts.append(f"{_text(line.base)} -> {_text(line.new)}{unit}")
    if line.effect is not None:
        parts.append(change(line, line.effect))
    if has_interval(line):
        parts.append(f"interval {change(line, line.low)} to {change(line, line.high)}")
    if line.base_blocks is not None:
        parts.append(f"{line.base_blocks} and {line.new_blocks} observations")
    return "; ".join(filter(None, parts))


def subject(line: Line) -> str:
    """What a line is about: ``iteration latency, scope phase, k 3, batch 8``."""
    parts = [line.what, f"scope {line.scope}" if line.scope else "", line.place]
    parts += ["" if line.spec_tokens is None else f"k {line.spec_tokens}"]
    parts += ["" if line.batch_size is None else f"batch {line.batch_size}"]
    return ", ".join(filter(None, parts))


def summary(comparison: Comparison) -> str:
    """The outcome in one line."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in comparison.counts.items())
    gated = counts or "nothing is gated: --gate ...,eager gates eager cells too"
    return f"{gated}; exit code {int(comparison.exit_code)}"


def notes(comparison: Comparison) -> Iterator[str]:
    """What stands below the table."""
    hidden = len(comparison.lines) - len(shown(comparison))
    if hidden:
        yield f"{hidden} reported lines are same or inconclusive (--format json has them)"
    yield from (f"differs: {difference}" for difference in comparison.differences)
    rules = comparison.rules
    yield (
        f"minimum effect {100 * rules.min_effect:g} %; each interval at "
        f"{100 * comparison.level:.6g} %, for {100 * rules.confidence:g} % over all gated ones; "
        "n: blocks, or processes of several (rows for acceptance, graphs for capture time) of "
        "BASE/NEW"
    )
    yield summary(comparison)


def shown(comparison: Comparison) -> Sequence[Line]:
    """Every gated line, and of the others what has changed."""
    return [line for line in comparison.lines if line.gated or line.verdict in TOLD]


def terminal(comparison: Comparison) -> Iterator[Table | Text]:
    """The table and its notes."""
    # Text, for in a plain string rich takes "[req]" for markup and drops it.
    table = Table(
        title=Text(_title(comparison)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for heading in HEADINGS:
        table.add_column(Text(heading), justify="left" if heading in LEFT else "right")
    for line in shown(comparison):
        cells = row(_with_reason(line))
        table.add_row(Text(cells[0], STYLES.get(line.verdict, "")), *map(Text, cells[1:]))
    yield table
    yield from (Text(note) for note in notes(comparison))


def plain(comparison: Comparison) -> str:
    """``terminal`` as bare text: rich takes a third of a second for 500 rows that nobody sees in
    colour."""
    rows = [HEADINGS, *(row(_with_reason(line)) for line in shown(comparison))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    heading, *texts = ["  ".join(_aligned(cells, widths)).rstrip() for cells in rows]
    return "\n".join([_title(comparison), "", heading, "", *texts, "", *notes(comparison)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for heading, cell, width in zip(HEADINGS, cells, widths, strict=True):
        yield cell.ljust(width) if heading in LEFT else cell.rjust(width)


def _title(comparison: Comparison) -> str:
    return f"{comparison.new} against {comparison.base}: {comparison.model}"


def _with_reason(line: Line) -> Line:
    """A reason stands beside what it is about."""
    place = ", ".join(filter(None, (line.place, line.reason)))
    return replace(line, place=place)


def markdown(comparison: Comparison) -> str:
    """The same as Markdown; also the step summary of a GitHub job."""
    title = f"### cgbench compare: {comparison.model}\n\n{summary(comparison)}"
    rule = ["---" if heading in LEFT else "---:" for heading in HEADINGS]
    rows = [row(_with_reason(line)) for line in shown(comparison)]
    table = "\n".join(_markdown_row(cells) for cells in (HEADINGS, rule, *rows))
    return "\n\n".join([title, table, "\n".join(f"- {note}" for note in notes(comparison))])


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _text(value: float | str | None) -> str:
    """Five digits, and whole numbers whole; of a hash its beginning."""
    if isinstance(value, str) and len(value) == SHA256_DIGITS:
        return value[:12]
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    return "" if value is None else str(value)
