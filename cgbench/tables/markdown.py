"""Write tables as Markdown has them."""

from collections.abc import Collection, Iterable, Iterator, Sequence


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[str]
) -> str:
    """Return ``rows`` under ``headings``. Those in ``left`` are aligned left, the others right."""
    rule = ["---" if heading in left else "---:" for heading in headings]
    return "\n".join(_lines([headings, rule, *rows]))


def _lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in rows:
        escaped = (cell.replace("|", "\\|") for cell in cells)
        yield f"| {' | '.join(escaped)} |"
