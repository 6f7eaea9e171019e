"""Tables as wide as a terminal, if they can be without cutting a number or a name."""

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

# Between two columns, where there is room.
GAP = 3


def fitted_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    names: Collection[str],
) -> Table:
    """The columns of a table that ``rows`` are to be added to; those in ``names`` stand left.

    Where the table is wider than ``width``, a terminal's in characters, headings take a line a
    word and columns stand closer. Cells are never folded: what is still too wide is for the
    terminal to go on with in its next line.
    """
    is_folded = _width(headings, rows) > width
    shown = [heading.replace(" ", "\n") for heading in headings] if is_folded else headings
    # Text, for in a plain string rich takes "[req]" for markup and drops it.
    table = Table(
        title=Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0) if is_folded else (0, 1),
        pad_edge=False,
    )
    for name, heading in zip(headings, shown, strict=True):
        justify: JustifyMethod = "left" if name in names else "right"
        table.add_column(Text(heading), justify=justify, no_wrap=True, vertical="bottom")
    return table


def _width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    columns = zip(headings, *rows, strict=True)
    return 2 - GAP + sum(GAP + max(map(len, cells)) for cells in columns)
