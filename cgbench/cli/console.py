"""Where text goes: results to stdout, everything said on the way to stderr."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from cgbench.progress import Bar

# Wide enough for every table: piped output is read by tools and must not be folded.
PIPED_WIDTH = 240
# Wider than any line.
UNCUT_WIDTH = 1000
# Longer than any number that a flag or a file may hold, with separators.
_LONG_NUMBER = re.compile(r"([0-9]{20})[0-9,]{30,}")


def replace_unencodable() -> None:
    """What stdout's encoding lacks is a "?" there, as stderr escapes it, and ends no command: typer
    shortens what is too wide for a help with an ellipsis, and a path may hold anything."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@cache
def console(*, stderr: bool = False) -> Console:
    """Colour and the terminal's width on a terminal; plain and wide when piped."""
    probe = Console(stderr=stderr)
    if probe.is_terminal:
        return probe
    return Console(stderr=stderr, width=PIPED_WIDTH, color_system=None)


def print_uncut(part: Table | Text) -> None:
    """A result on stdout: what is too wide for the terminal goes on in its next line. rich would
    cut the numbers in it."""
    to = console()
    size = to.size
    # Both, for a dumb terminal is taken for 80 columns where the height is not set too.
    to.size = UNCUT_WIDTH, size.height
    to.print(part, soft_wrap=True)
    to.size = size


def say(message: str) -> None:
    """One line on stderr, as it is: no markup."""
    console(stderr=True).print(Text(message), soft_wrap=True)


def print_error(message: str) -> None:
    """One red line on stderr, numbers of absurd length cut."""
    short = _LONG_NUMBER.sub(lambda found: f"{found[1]}... ({len(found[0])} characters)", message)
    line = Text.assemble(("error: ", "bold red"), (short, "red"))
    console(stderr=True).print(line, soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on a terminal while something without steps is done; nothing where piped."""
    to = console(stderr=True)
    spinner = "line" if to.options.ascii_only else "dots"
    with to.status(what, spinner=spinner) if to.is_terminal else nullcontext():
        yield


def say_when_piped(message: str) -> None:
    """One line for a log, where no progress bar tells the same."""
    if not console(stderr=True).is_terminal:
        say(message)


class TerminalProgress:
    """The commands' ``Progress``: on stderr, with bars and spinners where that is a terminal."""

    say = staticmethod(say)
    log = staticmethod(say_when_piped)
    working = staticmethod(working)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        to = console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=to, transient=True, disable=not to.is_terminal) as bars:
            yield _TerminalBar(bars, bars.add_task(title, total=total))


@dataclass(frozen=True, slots=True)
class _TerminalBar:
    bars: Progress
    task: TaskID

    def at(self, title: str) -> None:
        self.bars.update(self.task, description=title)

    def advance(self) -> None:
        self.bars.advance(self.task)
