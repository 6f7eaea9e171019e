"""Write a Parquet file of a run directory, and read it back to a typed frame.

Files are opened here, because Arrow refuses a name that is not UTF-8.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cgbench.rundir.schema import Column
from cgbench.rundir.summary import typed_frame

if TYPE_CHECKING:
    import pyarrow

MAX_ROWS = 50_000_000
"""The most rows that are read, because a file of a few bytes can hold any number of equal rows."""

TYPES = {"float64": ("double",), "int64": ("int64",), "string": ("string", "large_string")}
"""Arrow's names for what a column of each dtype holds."""


def parse_parquet(file: Path, columns: Sequence[Column]) -> pd.DataFrame:
    """Return the table in ``file``: those of ``columns`` that it has, in their own dtypes.

    The notes of pandas in it on indices and types are not read. Raise ``OSError`` if it cannot be
    read. Raise ``ValueError`` with one line if it is no Parquet file, lacks a column, or has one
    that is unknown or of another type. An empty cell where none may be raises it too.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with open(file, "rb") as opened:
            parquet = pyarrow.parquet.ParquetFile(opened)
            if parquet.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS:,} rows")
            held = _held(parquet.schema_arrow, columns)
            table = parquet.read()
    except (pyarrow.ArrowException, UnicodeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    for column in held:
        if column.is_never_empty and table[column.name].null_count:
            raise ValueError(f"{column.name} is empty in a row")
    return typed_frame(table.to_pandas(ignore_metadata=True), held)


def write_parquet(frame: pd.DataFrame, file: Path) -> None:
    """Write ``frame`` without its index."""
    with open(file, "wb") as opened:
        frame.to_parquet(opened, index=False)


def _held(schema: "pyarrow.Schema", columns: Sequence[Column]) -> list[Column]:
    """Return those of ``columns`` that are in ``schema``, in the order declared."""
    if len(set(schema.names)) < len(schema.names) or set(schema.names) - {c.name for c in columns}:
        raise ValueError("not the columns of this schema version")
    held = [column for column in columns if column.name in schema.names]
    for column in held:
        if str(schema.field(column.name).type) not in TYPES[column.dtype]:
            kind = "texts" if column.is_text else "numbers"
            raise ValueError(f"{column.name} is not of {kind}: must be {column.dtype}")
    return held
