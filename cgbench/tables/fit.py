"""Fit tables to a terminal's width without cutting a number or a name."""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

GAP = 3
"""Characters between two columns. In a table that is too wide there is one fewer."""


def fitted_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    names: Collection[str],
    gap: int = GAP,
) -> Table:
    """Return the columns of a table that ``rows`` are to be added to. Those in ``names`` are
    aligned left.

    ``width`` is a terminal's, in characters. If the table is wider, headings take a line a word and
    columns stand closer. Cells are never folded. A row that is still too wide goes on in the
    terminal's next line.
    """
    is_folded = _width(headings, rows, gap) > width
    # Text, because rich reads "[req]" in a plain string as markup and drops it.
    table = Table(
        title=Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=_padding(gap - is_folded),
        pad_edge=False,
    )
    for heading in headings:
        justify: JustifyMethod = "left" if heading in names else "right"
        shown = Text(_folded(heading) if is_folded else heading)
        table.add_column(shown, justify=justify, no_wrap=True, vertical="bottom")
    return table


def fits(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, gap: int = GAP
) -> bool:
    """Return whether ``fitted_table`` can be as narrow as ``width``."""
    return _width([*map(_folded, headings)], rows, gap - 1) <= width


def _folded(heading: str) -> str:
    return heading.replace(" ", "\n")


def _padding(gap: int) -> tuple[int, int, int, int]:
    """Return the padding of a cell. The box has one character of the gap."""
    return (0, gap // 2, 0, (gap - 1) // 2)


def _width(headings: Sequence[str], rows: Sequence[Sequence[str]], gap: int) -> int:
    """Return the characters of the whole table, with one at either edge."""
    lines = [heading.split("\n") for heading in headings]
    columns = zip(lines, *rows, strict=True)
    return 2 - gap + sum(gap + max(map(len, (*heading, *cells))) for heading, *cells in columns)
