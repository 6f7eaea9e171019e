"""Write the reference pages that the code holds: every flag, and every column of a run's files.

    python scripts/trials/write_reference.py --output docs

A test compares both pages with what this would write.
"""

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo

from cgbench.cli.app import app
from cgbench.rundir.block_schema import BLOCKS
from cgbench.rundir.schema import ACCEPTANCE, CAPTURE, LATENCY, SAMPLES, Column
from cgbench.tables.markdown import markdown_table

FLAGS_HEAD = """\
# Every flag

`scripts/trials/write_reference.py` writes this page from the commands themselves.
`cgbench COMMAND --help` prints the same. Every command also takes `--debug`, which shows
tracebacks. Exit codes and files are in the [reference](reference.md).
"""

COLUMNS_HEAD = """\
# Every column

`scripts/trials/write_reference.py` writes this page from the run directory's schema. The
[reference](reference.md) lists the files. An empty cell has no value. It is never a zero.
"""

HEADINGS = ("flag", "value", "default", "meaning")
KINDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "",
    Path: "path",
    list[str]: "text, repeatable",
}
NO_DEFAULT = ("None", "False", str(inspect.Parameter.empty))
COLUMN_HEADINGS = ("column", "type", "meaning")

FILES: Mapping[str, tuple[str, Sequence[Column]]] = {
    "latency.csv": ("One row is a cell: a scope, a k and a batch size.", LATENCY),
    "capture.csv": ("One row is a captured graph.", CAPTURE),
    "samples.parquet": ("One row is a timed stage of one iteration.", SAMPLES),
    "blocks.csv": ("One row is a timed block.", BLOCKS),
    "acceptance.csv": ("One row is a draft position of a cell.", ACCEPTANCE),
}


def flags_page() -> str:
    """Every flag of every command, with its default."""
    parts = [FLAGS_HEAD]
    for info in app.registered_commands:
        command = info.callback
        assert command is not None
        name = info.name or command.__name__.replace("_", "-")
        summary = " ".join(inspect.cleandoc(command.__doc__ or "").partition("\n\n")[0].split())
        table = markdown_table(HEADINGS, [*flag_rows(command)], left=HEADINGS)
        parts.append(f"## `cgbench {name}`\n\n{summary}\n\n{table}\n")
    return "\n".join(parts)


def flag_rows(command: Callable[..., Any]) -> Iterator[list[str]]:
    """The cells of each flag. ``--debug`` is that of every command."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, info, *_ = get_args(hints[name])
        if name == "debug":
            continue
        stated = str(parameter.default)
        default = "" if stated in NO_DEFAULT else stated
        names = ", ".join(f"`{each}`" for each in names_of(name, info))
        yield [names, kind_of(kind), f"`{default}`" if default else "", escaped(info.help or "")]


def names_of(name: str, info: Any) -> Sequence[str]:
    """What a person types."""
    if isinstance(info, ArgumentInfo):
        return [info.metavar or name.upper()]
    # Inside Annotated typer keeps the first name as the default.
    given = [each for each in (info.default, *(info.param_decls or ())) if is_flag(each)]
    return given or ["--" + name.replace("_", "-")]


def is_flag(given: object) -> bool:
    return isinstance(given, str) and given.startswith("--")


def kind_of(kind: Any) -> str:
    """What a flag takes: its choices, or a word for its type. A switch takes nothing."""
    plain = next((each for each in get_args(kind) if each is not type(None)), kind)
    if isinstance(plain, type) and issubclass(plain, Enum):
        return ", ".join(str(choice.value) for choice in plain)
    return KINDS[plain]


def columns_page() -> str:
    """Every column of every file."""
    parts = [COLUMNS_HEAD]
    for name, (words, columns) in FILES.items():
        rows = [[f"`{each.name}`", each.dtype, meaning_of(each)] for each in columns]
        table = markdown_table(COLUMN_HEADINGS, rows, left=COLUMN_HEADINGS)
        parts.append(f"## `{name}`\n\n{words}\n\n{table}\n")
    return "\n".join(parts)


def meaning_of(column: Column) -> str:
    """The meaning, with the words that the column may hold."""
    words = f" ({', '.join(column.words)})" if column.words else ""
    return escaped(column.meaning + words)


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write both pages."""
    parser = argparse.ArgumentParser(description="Write the reference pages that the code holds.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the two pages")
    folder = parser.parse_args().output
    (folder / "flags.md").write_text(flags_page(), encoding="utf-8")
    (folder / "columns.md").write_text(columns_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
