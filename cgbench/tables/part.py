"""Hold a table before it is laid out for the terminal, for Markdown or for a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from cgbench.tables.fit import fitted_table
from cgbench.tables.markdown import markdown_table

Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Part:
    """A ``Part`` is a titled table. ``left`` are the headings of columns that hold names, not
    numbers.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    left: tuple[str, ...] = ()

    def terminal(self, width: int) -> Table:
        """Return the table for a terminal of ``width`` characters."""
        table = fitted_table(self.title, self.headings, self.rows, width, names=self.left)
        for cells in self.rows:
            table.add_row(*cells)
        return table

    def markdown(self) -> str:
        """Return the table as Markdown, under a heading of its own."""
        table = markdown_table(self.headings, self.rows, left=self.left)
        return f"### {self.title}\n\n{table}"
