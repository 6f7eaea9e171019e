"""Refuse what no measurement gives: wrong words, signs and ranges, rows twice, tables that
disagree.

Each check yields what is wrong, in words that follow a file's name. Statistics fail on such tables,
or worse, do not.
"""

from collections.abc import Callable, Iterator, Sequence
from math import nan

import numpy as np
import pandas as pd

from cgbench.errors import BadInputError
from cgbench.request.acceptance_lengths import stated_length
from cgbench.rundir.block_schema import BLOCKS
from cgbench.rundir.schema import (
    ACCEPTANCE,
    CAPTURE,
    LATENCY,
    MAX_TEXT,
    SAMPLES,
    SECONDS,
    Column,
)
from cgbench.rundir.summary import BLOCK, CELL
from cgbench.words import Mode, Stage, Status

ROW_KEYS: dict[Sequence[Column], list[str]] = {
    LATENCY: CELL,
    CAPTURE: ["phase", "spec_tokens", "bucket"],
    ACCEPTANCE: [*CELL, "position"],
    SAMPLES: [*CELL, *BLOCK, "iteration", "stage"],
    BLOCKS: [*CELL, *BLOCK],
}
"""The columns in which no two rows of a table are the same."""

# Numbers are kept to six digits.
ROUNDING = 1e-5

Rows = Callable[[pd.DataFrame], "pd.Series[bool]"]


def _differs(left: "pd.Series[float]", right: "pd.Series[float]") -> "pd.Series[bool]":
    """Return the rows that have both values, but not the same."""
    return (left - right).abs() > ROUNDING * right.abs()


def _is_not_padded_so(rows: pd.DataFrame) -> "pd.Series[bool]":
    bucket = rows["bucket"].astype("float64")
    is_graph = rows["mode"] == Mode.GRAPH
    padding = (bucket - rows["batch_size"]) / bucket
    return (
        (is_graph != bucket.notna())
        | (is_graph != rows["padding_frac"].notna())
        | (padding < 0)
        | ((padding - rows["padding_frac"]).abs() > ROUNDING)
    )


def _are_not_percentiles(rows: pd.DataFrame) -> "pd.Series[bool]":
    p50, p90, p99 = (rows[f"iteration_p{n}_ms"] for n in (50, 90, 99))
    is_complete = p50.notna() == p90.notna()
    return ~is_complete | (p50 > p90) | (p90 > p99) | (p99.notna() != p90.notna())


def _has_other_rates(rows: pd.DataFrame) -> "pd.Series[bool]":
    num_rates = rows["acceptance_rate_per_pos"].str.count(";") + 1
    return (num_rates != rows["spec_tokens"]).fillna(False).astype(bool)


def _is_no_time(rows: pd.DataFrame) -> "pd.Series[bool]":
    timed = rows["stage"] == str(Stage.ITERATION)
    gpu_s = rows["gpu_s"]
    is_negative = (gpu_s < 0) & (rows["stage"] != str(Stage.HOST_GAP))
    return is_negative | (timed & ~gpu_s.between(SECONDS.least, SECONDS.most))


def _are_not_leading_drafts(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Return the rows whose counts cannot be. A draft is accepted only after all before it, and
    every position has the same rows.
    """
    ordered = rows.sort_values("position")
    by_cell = ordered.groupby(CELL)
    is_wrong = (
        (ordered["accepted"] > by_cell["accepted"].shift())
        | (ordered["drafted"] != by_cell["drafted"].transform("first"))
        | (ordered["position"] != by_cell.cumcount() + 1)
    )
    return is_wrong.reindex(rows.index)


IMPOSSIBLE: dict[Sequence[Column], dict[str, Rows]] = {
    LATENCY: {
        "bucket and padding_frac are not those of a batch in a graph": _is_not_padded_so,
        "p50, p90 and p99 do not ascend": _are_not_percentiles,
        "a cell that is ok has no time": lambda rows: (
            (rows["status"] == Status.OK) & rows["iteration_p50_ms"].isna()
        ),
        "mean_acceptance_length is over k + 1": lambda rows: (
            rows["mean_acceptance_length"] > rows["spec_tokens"] + 1
        ),
        "acceptance_rate_per_pos has not k rates": _has_other_rates,
    },
    CAPTURE: {
        "num_tokens is no multiple of bucket": lambda rows: rows["num_tokens"] % rows["bucket"] > 0
    },
    SAMPLES: {"gpu_s is not above 0 and finite": _is_no_time},
    ACCEPTANCE: {
        "accepted is not 0 to drafted": lambda rows: rows["accepted"] > rows["drafted"],
        "position is over k": lambda rows: rows["position"] > rows["spec_tokens"],
        "counts are not of leading drafts": _are_not_leading_drafts,
    },
    BLOCKS: {},
}
"""The rows that no measurement gives, by what is wrong with them."""


def table_faults(frame: pd.DataFrame, columns: Sequence[Column]) -> Iterator[str]:
    """Yield what is wrong within a table that has ``columns`` in this order, in their dtypes."""
    if frame.empty:
        return
    for column, (_, values) in zip(columns, frame.items(), strict=True):
        yield from _column_faults(values, column)
    key = ROW_KEYS[columns]
    if frame.duplicated(key).any():
        yield f"a row is there twice, by {', '.join(key)}"
    for fault, are_impossible in IMPOSSIBLE[columns].items():
        yield from _in_a_row(are_impossible(frame), fault)


def _column_faults(values: "pd.Series[float]", column: Column) -> Iterator[str]:
    if column.is_never_empty and values.hasnans:
        yield from _in_a_row(values.isna(), f"{column.name} is empty")
    if column.is_text:
        yield from (
            f"{column.name} is {text[:40]!a}{reason}"
            for text in values.unique().tolist()
            if text is not pd.NA and (reason := _why_not(text, column))
        )
        return
    # An empty cell is NaN, and neither below nor above.
    numbers = values.to_numpy("float64", na_value=nan)
    for row in np.flatnonzero((numbers < column.within.least) | (numbers > column.within.most)):
        yield f"{column.name} is {values.iloc[row]} in row {row + 1}, must be {column.within}"


def _why_not(text: str, column: Column) -> str:
    """Return why a column cannot hold ``text``, or nothing if it can."""
    if column.words and text not in column.words:
        return f", must be {' or '.join(column.words)}"
    if len(text) > MAX_TEXT or not text.isprintable():
        return f"..., must be printable, of at most {MAX_TEXT} characters"
    return "" if column.is_right(text) else ", must be as this schema version has it"


def _in_a_row(are_wrong: "pd.Series[bool]", fault: str) -> Iterator[str]:
    if are_wrong.any():
        yield f"{fault} in row {int(are_wrong.to_numpy().argmax()) + 1}"


def cell_faults(rows: pd.DataFrame, latency: pd.DataFrame) -> Iterator[str]:
    """Yield the cells of a table that ``latency`` lacks, or has in another mode."""
    if rows.empty:
        return
    names = [*CELL, *(["mode"] if "mode" in rows else [])]
    known = set(latency[names].itertuples(index=False, name=None))
    for cell in rows[names].drop_duplicates().itertuples(index=False, name=None):
        if cell not in known:
            yield f"has rows of {' '.join(map(str, cell))}, which latency.csv lacks"


def length_faults(acceptance: pd.DataFrame, latency: pd.DataFrame) -> Iterator[str]:
    """Yield the mean acceptance lengths in ``latency`` that are neither stated by their rule nor
    counted.
    """
    if acceptance.empty:
        return
    counts = acceptance.groupby(CELL).agg(
        accepted=("accepted", "sum"), drafted=("drafted", "first")
    )
    by_cell = latency.set_index(CELL)
    stated = pd.Series(map(_stated, latency["acceptance"], latency["spec_tokens"]), by_cell.index)
    expected = stated.reindex(counts.index).fillna(1 + counts["accepted"] / counts["drafted"])
    lengths = by_cell["mean_acceptance_length"].reindex(counts.index)
    for cell in lengths.index[_differs(lengths, expected.where(counts["drafted"] > 0))]:
        name = " ".join(map(str, cell))
        yield f"is not the mean_acceptance_length that latency.csv has of {name}"


def _stated(acceptance: str, spec_tokens: int) -> float:
    try:
        stated = stated_length(acceptance, spec_tokens)
    except BadInputError:
        # A rule of no name states nothing.
        return nan
    return nan if stated is None else stated
