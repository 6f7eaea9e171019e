"""``cgbench report`` writes runs as one page for colleagues, which opens offline."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from cgbench.cli.bench_flags import Debug
from cgbench.cli.console import say, working
from cgbench.errors import BadInputError

SUFFIXES = (".html", ".md")


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories. Several overlay.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="FILE.html, or FILE.md for Markdown.")
    ] = Path("report.html"),
    debug: Debug = False,
) -> None:
    """Write runs as one self-contained page: charts, tables, floors, which k, environment."""
    from cgbench.rundir.store import RunDirectory
    from cgbench.tables.report.report_page import html_report, markdown_report

    # What is imported stays. Collections that walk it again took a seventh of the time.
    gc.freeze()
    with working("reading"):
        opened = [RunDirectory.open(path) for path in runs]
    _check(output)
    with working("drawing"):
        text = (html_report if output.suffix == ".html" else markdown_report)(opened)
    try:
        output.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise BadInputError(f"--output {output}: {error.strerror}") from error
    say(f"written to {output}")


def _check(output: Path) -> None:
    """Refuse early what could not be written."""
    if output.suffix not in SUFFIXES:
        raise BadInputError(f"--output {output}: must end in {' or '.join(SUFFIXES)}")
    if not output.absolute().parent.is_dir():
        raise BadInputError(f"--output {output}: no such folder")
    if output.suffix == ".html":
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise BadInputError(
                f"--output {output}: charts need matplotlib: pip install 'cgbench[plot]', or "
                "write FILE.md"
            ) from error
