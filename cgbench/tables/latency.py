"""Write the latency table for people and programs: terminal, Markdown and JSON.

One frame feeds all of them, and one list of columns feeds the two that people read.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from rich.table import Table
from rich.text import Text

from cgbench.request.command_line import command_line
from cgbench.rundir.record import RunRecord, resumed_words
from cgbench.rundir.schema import LATENCY, LATENCY_KEY
from cgbench.tables.fit import fits, fitted_table
from cgbench.tables.markdown import markdown_table

Row: TypeAlias = Mapping[Hashable, Any]

SETTING = (
    "head",
    "device",
    "dtype",
    "attention",
    "compile",
    "acceptance",
    "tp_size",
    "context_len",
    "l2",
    "routing",
)

DEFAULTS = {column.name: column.default for column in LATENCY}

DEFINITIONS = """\
One iteration verifies k drafts, keeps those that are right, drafts k more and commits. Times are
medians (p50) unless headed p99.

- Iteration is GPU time, and wall time on a CPU. +/- is half the 95 % interval of its median over
  blocks, or over processes if there are several. Discarded blocks are in no number.
- Verify and draft (all k steps) come from a separate, instrumented pass. Host gap is wall minus GPU
  time.
- Floor share is the floor's share of the iteration. The floor is the least time that the device
  could take, from bytes, operations and measured rates. 100 % would be perfect.
- Experts read are distinct experts of one expert layer in one verify, on average.
- Accept length is 1 + accepted drafts per iteration. The 1 is the bonus or recovered token. Under
  the rules length and golden it is the stated one.
- TPOT is the time per output token of a request: mean wall time / accept length. tok/s is batch
  size / TPOT.
- "vs eager" is a ratio of iteration times. "vs no spec" is tok/s over that of k = 0 in the same
  scope.
- "(eager)" marks a batch over the largest bucket. Its scope ran without a graph.
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A ``Shown`` is a column that people read: where it comes from, and how a value is written."""

    heading: str
    column: str
    pattern: str = "{}"

    @property
    def is_number(self) -> bool:
        """Return whether the column holds numbers."""
        return self.column not in ("scope", "status")

    def text(self, row: Row) -> str:
        """Return the row's value as text. It is empty if there is no value."""
        value = row[self.column]
        return "" if pd.isna(value) else self.pattern.format(value)


SHOWN = (
    Shown("scope", "scope"),
    Shown("k", "spec_tokens"),
    Shown("batch [req]", "batch_size"),
    Shown("bucket [req]", "bucket"),
    Shown("iteration p50 [ms]", "iteration_p50_ms", "{:.3f}"),
    Shown("+/-", "half_width_frac", "{:.2%}"),
    Shown("TPOT [ms]", "tpot_ms", "{:.3f}"),
    Shown("p99 [ms]", "iteration_p99_ms", "{:.3f}"),
    Shown("floor share", "floor_frac", "{:.1%}"),
    Shown("experts read", "experts_read", "{:.1f}"),
    Shown("verify [ms]", "verify_p50_ms", "{:.3f}"),
    Shown("draft [ms]", "draft_p50_ms", "{:.3f}"),
    Shown("host gap [ms]", "host_gap_p50_ms", "{:z.3f}"),
    Shown("accept length", "mean_acceptance_length", "{:.2f}"),
    Shown("tok/s", "output_tok_per_s", "{:.1f}"),
    Shown("vs eager", "speedup_vs_eager", "{:.2f}x"),
    Shown("vs no spec", "speedup_vs_no_spec", "{:.2f}x"),
    Shown("discarded", "discarded_blocks"),
    Shown("status", "status"),
)


SPARED = (
    "discarded_blocks",
    "experts_read",
    "host_gap_p50_ms",
    "iteration_p99_ms",
    "bucket",
    "draft_p50_ms",
    "verify_p50_ms",
    "half_width_frac",
)
"""Columns that a narrow terminal goes without, in this order, so that no number is cut."""

FIRST = (
    "scope",
    "spec_tokens",
    "batch_size",
    "iteration_p50_ms",
    "floor_frac",
    "mean_acceptance_length",
    "output_tok_per_s",
    "speedup_vs_eager",
    "speedup_vs_no_spec",
    "status",
)
"""Columns of the terminal's table without ``--wide``."""

AN_ITERATION = (
    "One iteration verifies k drafts, keeps those that are right, and drafts k more: "
    "1 to k + 1 tokens a request.\n"
    "Scopes: eager launches every kernel, phase replays three graphs, iteration replays one."
)

GAP = 2
"""Characters between two columns. They are few, because there are many columns."""


def latency_table(frame: pd.DataFrame, title: str, width: int, *, is_wide: bool = False) -> Table:
    """Return the terminal's table, a section a batch size. ``title`` holds the model label.

    It has the columns ``FIRST``, and with ``is_wide`` all that have a value. ``width`` is the
    terminal's, in characters. If the table does not fit, headings take a line a word. If it still
    does not, the first of ``SPARED`` are left out. The caption names what is left out. A table that
    is too wide even then is printed uncut.
    """
    offered = [each for each in _with_values(frame) if is_wide or each.column in FIRST]
    shown, groups = offered, _groups(frame)
    for column in SPARED:
        if not fits(_headings(shown), _texts(groups, shown), width, GAP):
            shown = [each for each in shown if each.column != column]
    headings, rows = _headings(shown), _texts(groups, shown)
    words = f"{title}\n{AN_ITERATION}"
    table = fitted_table(words, headings, rows, width, names=_names(shown), gap=GAP)
    table.caption = Text(_caption(frame, offered, shown))
    for group in groups:
        for cells in _texts([group], shown):
            table.add_row(*cells)
        table.add_section()
    return table


def latency_markdown(frame: pd.DataFrame, record: RunRecord) -> str:
    """Return ``latency.md``: model, machine, command, the table, and what its columns mean."""
    known = {name: value for name, value in record.environment.items() if value is not None}
    facts = [f"- {name}: {value}" for name, value in known.items()]
    words = record.mixture_words
    mixture = [] if words is None else [f"- mixture: {words}"]
    padded = ", ".join(record.padded_products)
    products = [f"- products with rows added, where faster: {padded}"] if padded else []
    resumed = [f"- resumed: {resumed_words(entry)}" for entry in record.resumed]
    warnings = [f"- warning: {warning}" for warning in record.warnings]
    parts = [
        f"# cgbench run: {record.model['label']}",
        "\n".join([f"- {_setting(frame)}", *mixture, *facts, *products, *resumed, *warnings]),
        f"```\n{command_line('run', record.arguments)}\n```",
        _markdown(frame),
        DEFINITIONS,
    ]
    return "\n\n".join(parts)


def to_json(frame: pd.DataFrame, record: RunRecord, path: Path) -> str:
    """Return the record, ``path`` and every latency row in one JSON object. An empty cell
    is null.
    """
    rows = json.loads(frame.to_json(orient="records"))
    return json.dumps({"path": str(path), **asdict(record), "latency": rows}, indent=2)


def _setting(frame: pd.DataFrame) -> str:
    """Return the settings that all rows share, as one line."""
    names = [*SETTING, *(name for name in LATENCY_KEY if _is_told(frame, name))]
    drafting = frame[frame["spec_tokens"] > 0]
    # Rows of k = 0 have no head, and so neither modules nor a vocabulary of its own.
    of_head = () if drafting.empty else OF_HEAD
    values = {
        name: list(map(str, (drafting if name in of_head else frame)[name].unique()))
        for name in names
    }
    return ", ".join(f"{name} {'/'.join(each)}" for name, each in values.items())


OF_HEAD = ("head", "mtp_modules", "draft_vocab")
"""Settings that only rows with drafts have."""


def _is_told(frame: pd.DataFrame, name: str) -> bool:
    """Return whether a setting that most runs have alike is another one here."""
    default = DEFAULTS.get(name)
    return name not in SETTING and default is not None and bool((frame[name] != default).any())


def _caption(frame: pd.DataFrame, offered: Sequence[Shown], shown: Sequence[Shown]) -> str:
    """Return the setting of all rows, the columns that the width has no room for, and how to show
    more.
    """
    spared = ", ".join(each.heading for each in offered if each not in shown)
    hidden = len(_with_values(frame)) - len(offered)
    lines = [
        _setting(frame),
        f"left out at this width: {spared}. latency.md has them" if spared else "",
        f"--wide shows {hidden} more columns. latency.md explains them all" if hidden else "",
    ]
    return "\n".join(line for line in lines if line)


def _with_values(frame: pd.DataFrame) -> list[Shown]:
    """Return the columns to show of ``frame``. A column without a value in any row is left out."""
    return [each for each in SHOWN if frame[each.column].notna().any()]


def _groups(frame: pd.DataFrame) -> list[list[Row]]:
    """Return the rows of each batch size, ascending."""
    groups = [group.astype(object) for _, group in frame.groupby("batch_size")]
    return [[_with_mode(row) for row in group.to_dict("records")] for group in groups]


def _texts(groups: Sequence[Sequence[Row]], shown: Sequence[Shown]) -> list[list[str]]:
    return [[each.text(row) for each in shown] for group in groups for row in group]


def _with_mode(row: Row) -> Row:
    """Return ``row`` with the mode beside a scope that did not run as a graph."""
    if row["mode"] == "graph" or row["scope"] == "eager":
        return row
    return {**row, "scope": f"{row['scope']} ({row['mode']})"}


def _markdown(frame: pd.DataFrame) -> str:
    shown = _with_values(frame)
    return markdown_table(_headings(shown), _texts(_groups(frame), shown), left=_names(shown))


def _headings(shown: Sequence[Shown]) -> list[str]:
    return [each.heading for each in shown]


def _names(shown: Sequence[Shown]) -> list[str]:
    """Return the headings of the columns that are no numbers."""
    return [each.heading for each in shown if not each.is_number]
