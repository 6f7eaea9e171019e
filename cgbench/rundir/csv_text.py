"""Read a CSV file as ``RunDirectory`` writes it, to a typed frame. Nothing in it is guessed.

pandas' own reader accepts too much. It reads a row that is too short as one with empty cells. It
reads ``nan`` and ``inf`` as numbers, and a quote that is never closed as text. Here each of them is
an error.
"""

import csv
import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pandas as pd

from cgbench.rundir.schema import Column

# A whole number may end in .0, because pandas writes it so in a column with an empty cell.
NUMBERS = {
    "float64": re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"),
    "int64": re.compile(r"-?[0-9]{1,18}(\.0)?"),
}

Texts = Sequence[str | None]
"""A column's cells. None is an empty one."""


def parse_csv(text: str, columns: Sequence[Column]) -> pd.DataFrame:
    """Return the table in ``text``: those of ``columns`` that it has, in their own dtypes.

    Raise ``ValueError`` with one line if it is cut short, or has a row of another length or a quote
    left open. A column that is missing or unknown raises it too, and so does a number that is none.
    """
    if not text.endswith("\n"):
        # A value that was cut off would be read as an empty cell.
        raise ValueError("cut short, its last line has no end")
    if text.count('"') % 2:
        raise ValueError("a quote is left open")
    try:
        header, *rows = csv.reader(StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    known = {column.name: column for column in columns}
    held = [known.get(name) for name in header]
    if None in held or len(set(header)) < len(header):
        raise ValueError("not the columns of this schema version")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, not {len(header)}")
    cells = [[cell or None for cell in column] for column in zip(*rows, strict=True)]
    named = zip([column for column in held if column], cells or [[]] * len(header), strict=True)
    values = {column.name: _values(texts, column) for column, texts in named}
    return pd.DataFrame({each.name: values[each.name] for each in columns if each.name in values})


def _values(texts: Texts, column: Column) -> "pd.Series[Any]":
    """Return a column's cells as values of its dtype. An empty one is missing. Where no cell may be
    empty, ``ValueError`` names its row.
    """
    if column.is_text:
        return pd.Series([*texts], dtype="string")
    is_whole = column.dtype != "float64"
    number = NUMBERS["int64" if is_whole else "float64"]
    for row, text in enumerate(texts, start=1):
        if text is not None and not number.fullmatch(text):
            kind = "whole number" if is_whole else "number"
            raise ValueError(f"{column.name} is {text[:40]!a} in row {row}, must be a {kind}")
        if text is None and column.is_never_empty:
            raise ValueError(f"{column.name} is empty in row {row}")
    if is_whole:
        numbers = [None if text is None else int(text.removesuffix(".0")) for text in texts]
        return pd.Series(numbers, dtype=column.dtype)
    return pd.Series([None if text is None else float(text) for text in texts], dtype="float64")
