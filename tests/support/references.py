"""Numbers in the documentation that name the recorded value which they state.

    5.14, 5.70 and 10.41 ms <!-- from results/h200/mimo-7b-k3-compiled/latency.csv;
    scope == 'iteration' and spec_tokens == 3; iteration_p50_ms -->

The comment follows the numbers: ``from FILE; ROWS; VALUES``. ``ROWS`` is a pandas query, empty for
all rows. ``VALUES`` is one pandas expression over the columns, or several with commas between them.
A reference that gives n values is held against the last n numbers of the paragraph before it, each
rounded as it is printed.

``FILE#PART`` chooses rows inside a file. In JSON it is a path of keys such as
``floor.accounts.lines``. Each element of a list on the way is a row, and rows keep the plain values
above them. In Markdown it is the number of the table, from 1.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
REFERENCE = re.compile(r"from ([^;#\s]+)(?:#([^;\s]+))?;([^;]*);([^;]+)")
NUMBER = re.compile(r"(?<![\w.,])(?:(?<![-\w])-)?\d+(?:,\d{3})*(?:\.\d+)?(?:x\b)?(?![\w]|[.,]\d)")


@dataclass(frozen=True)
class Reference:
    """One comment, and the text of its paragraph up to it."""

    before: str
    path: str
    part: str
    rows: str
    values: str

    def recorded(self, root: Path) -> list[float]:
        """The values that the file holds, row by row."""
        frame = read(root / self.path, self.part)
        if self.rows:
            frame = frame.query(self.rows, engine="python")
        columns = [frame.eval(value, engine="python") for value in self.values.split(",")]
        return [float(value) for value in np.column_stack(columns).ravel()]

    def printed(self, root: Path) -> list[str]:
        """As many of the paragraph's last numbers."""
        count = len(self.recorded(root))
        return (
            [number.removesuffix("x") for number in NUMBER.findall(self.before)[-count:]]
            if count
            else []
        )

    def fault(self, root: Path) -> str | None:
        """Why the reference does not hold, or None."""
        try:
            recorded = self.recorded(root)
        except Exception as error:  # Whatever pandas makes of a mistaken reference.
            return f"{self.path}: {self.rows}; {self.values}: {type(error).__name__}: {error}"
        printed = self.printed(root)
        if recorded and len(printed) == len(recorded) and all(map(rounds_to, recorded, printed)):
            return None
        return f"{self.path}: {self.rows}; {self.values}: {recorded}, printed as {printed}"


def rounds_to(value: float, printed: str) -> bool:
    """Whether ``value``, rounded to as many digits, is what is printed."""
    decimals = len(printed.partition(".")[2])
    return abs(value - float(printed.replace(",", ""))) <= 0.5000001 * 10**-decimals


def references(text: str) -> Iterator[Reference]:
    """Every reference of a document. Raises ``ValueError`` for a comment that names a file in
    ``results/`` and is none."""
    for comment in COMMENT.finditer(text):
        words = " ".join(comment[1].split())
        found = REFERENCE.fullmatch(words)
        if found is not None:
            paragraph = text[: comment.start()].rpartition("\n\n")[2]
            path, part, rows, values = ((group or "").strip() for group in found.groups())
            yield Reference(COMMENT.sub("", paragraph), path, part, rows, values)
        elif "results/" in words:
            raise ValueError(f"not `from FILE; ROWS; VALUES`: {words}")


MEASURED = re.compile(rf"({NUMBER.pattern}) (?:ms|us|TB/s|GB/s|TFLOP/s|MHz)\b")
IN_A_UNIT = re.compile(r"^\|.*\b(?:ms|us)\b")


def unsourced(text: str, root: Path) -> list[str]:
    """Times, rates and clocks of a document that no reference holds, and table rows below such a
    unit that have none."""
    found: list[str] = []
    for block in re.split(r"\n\n+", text.strip()):
        stated = [match[1] for match in MEASURED.finditer(COMMENT.sub("", block))]
        sourced = {number for each in references(block) for number in each.printed(root)}
        found += [number for number in stated if number not in sourced]
        header, *rows = block.splitlines()
        if IN_A_UNIT.match(header):
            found += [row for row in rows[1:] if not [*references(row)]]
    return found


def read(path: Path, part: str) -> pd.DataFrame:
    """A CSV or Parquet file, the rows of a JSON file, or a table of a Markdown file."""
    if path.suffix == ".csv":
        return pd.read_csv(path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".json":
        keys = part.split(".") if part else []
        return pd.json_normalize([*json_rows(json.loads(path.read_text()), keys)])
    return markdown_table(path.read_text(), int(part or 1))


def json_rows(value: Any, keys: list[str], above: dict[str, Any] | None = None) -> Iterator[Any]:
    """What lies at ``keys``, a row for each element of a list on the way."""
    if isinstance(value, list):
        for item in value:
            yield from json_rows(item, keys, above)
    elif keys:
        plain = {k: v for k, v in value.items() if not isinstance(v, list | dict)}
        yield from json_rows(value[keys[0]], keys[1:], {**(above or {}), **plain})
    else:
        yield {**(above or {}), **value}


def markdown_table(text: str, number: int) -> pd.DataFrame:
    """The table of that number, from 1. A column in which every cell is a number is numeric."""
    tables = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    lines = tables[number - 1].splitlines()
    header, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    frame = pd.DataFrame(body, columns=header)
    for name in frame:
        numbers = pd.to_numeric(frame[name].str.rstrip("%").str.replace(",", ""), errors="coerce")
        if numbers.notna().all():
            frame[name] = numbers
    return frame
