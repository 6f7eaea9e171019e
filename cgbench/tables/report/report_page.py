"""Write a report's sections as one HTML page that loads nothing, and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from cgbench.rundir.store import RunDirectory
from cgbench.tables.part import Part
from cgbench.tables.report.report_runs import ReportRuns
from cgbench.tables.report.report_sections import Section, sections_of

TEMPLATE = "page.html.j2"


@dataclass(frozen=True, slots=True)
class DrawnSection:
    """A ``DrawnSection`` is a section with its charts drawn, as the template takes it."""

    title: str
    words: Sequence[str]
    tables: Sequence[Part]
    svgs: Sequence[object]
    code: str
    notes: Sequence[str]


def html_report(runs: Sequence[RunDirectory]) -> str:
    """Return the whole page. Styles, script and charts are in it, and its policy forbids any
    request.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    shown = ReportRuns.of(runs)
    loader = PackageLoader("cgbench.tables.report", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    drawn = [_drawn(section, number) for number, section in enumerate(sections_of(shown))]
    template = environment.get_template(TEMPLATE)
    return template.render(title=_title(shown), sections=drawn, zip=zip)


def markdown_report(runs: Sequence[RunDirectory]) -> str:
    """Return the same words and tables, without charts."""
    shown = ReportRuns.of(runs)
    texts = [text for section in sections_of(shown) for text in _markdown(section)]
    return "\n\n".join([f"# {_title(shown)}", *texts]) + "\n"


def _title(runs: ReportRuns) -> str:
    labels = dict.fromkeys(run.record.model["label"] for _, run in runs)
    return f"cgbench: {', '.join(labels)}"


def _drawn(section: Section, number: int) -> DrawnSection:
    from markupsafe import Markup

    from cgbench.tables.report.report_charts import svg_of

    # matplotlib escapes what a label holds.
    svgs = [
        Markup(svg_of(chart.draw, chart.title, f"c{number}{letter}", chart.height_in))
        for letter, chart in zip(ascii_lowercase, section.charts, strict=False)
    ]
    return DrawnSection(
        section.title, section.words, section.tables, svgs, section.code, section.notes
    )


def _markdown(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    if said := (*section.words, *section.notes):
        yield "\n".join(f"- {' '.join(line.split())}" for line in said)
    yield from (part.markdown() for part in section.tables)
    if section.code:
        yield f"```\n{section.code}\n```"
