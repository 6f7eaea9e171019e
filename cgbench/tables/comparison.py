"""Write a comparison for people: one set of rows for the terminal and for Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cgbench.gate.comparison import Comparison
from cgbench.gate.verdicts import Line
from cgbench.gate.wording import change, has_interval, summary, value_text
from cgbench.tables.markdown import markdown_table
from cgbench.words import Verdict

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

# A reported line is shown if it is neither as before nor undecided.
TOLD = frozenset(Verdict) - {Verdict.SAME, Verdict.INCONCLUSIVE}


STYLES = {
    Verdict.REGRESSED: "bold red",
    Verdict.NOT_COMPARABLE: "red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.FASTER: "green",
    Verdict.IMPROVED: "green",
}


def row(line: Line) -> tuple[str, ...]:
    """Return the texts of a line under ``HEADINGS``."""
    place = f" ({line.place})" if line.place else ""
    unit = f" [{line.unit}]" if line.unit else ""
    return (
        line.verdict + ("" if line.gated else " (reported)"),
        f"{line.what}{unit}{place}",
        line.scope or "",
        *(value_text(value) for value in (line.spec_tokens, line.batch_size)),
        value_text(line.base),
        value_text(line.new),
        change(line, line.effect),
        f"{change(line, line.low)} .. {change(line, line.high)}" if has_interval(line) else "",
        "" if line.base_blocks is None else f"{line.base_blocks}/{line.new_blocks}",
    )


def notes(comparison: Comparison) -> Iterator[str]:
    """Yield the lines that stand below the table."""
    hidden = len(comparison.lines) - len(shown(comparison))
    if hidden:
        yield f"{hidden} reported lines are same or inconclusive (--format json has them)"
    yield from (f"differs: {difference}" for difference in comparison.differences)
    rules = comparison.rules
    yield (
        f"minimum effect {100 * rules.min_effect:g} %. Each interval at "
        f"{100 * comparison.level:.6g} %, for {100 * rules.confidence:g} % over all gated ones. "
        "n: blocks, or processes of several (rows for acceptance, graphs for capture time) of "
        "BASE/NEW"
    )
    yield summary(comparison)


def shown(comparison: Comparison) -> Sequence[Line]:
    """Return every gated line, and of the others those that have changed."""
    return [line for line in comparison.lines if line.gated or line.verdict in TOLD]


def terminal(comparison: Comparison) -> Iterator[Table | Text]:
    """Yield the table and its notes for a terminal."""
    # Text, because rich reads "[req]" in a plain string as markup and drops it.
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
    """Return the table and its notes as bare text, because rich takes a third of a second for 500
    rows without colour.
    """
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
    """Return the line with its reason beside its place."""
    place = ", ".join(filter(None, (line.place, line.reason)))
    return replace(line, place=place)


def markdown(comparison: Comparison) -> str:
    """Return the same as Markdown, which is also the step summary of a GitHub job."""
    title = f"### cgbench compare: {comparison.model}\n\n{summary(comparison)}"
    rows = [row(_with_reason(line)) for line in shown(comparison)]
    table = markdown_table(HEADINGS, rows, left=LEFT)
    return "\n\n".join([title, table, "\n".join(f"- {note}" for note in notes(comparison))])
