"""Send text where it belongs: results to stdout, everything else to stderr."""

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

from cgbench.inputs import shown_whole
from cgbench.progress import Bar

# Piped output is as wide as every table, because tools read it and it must not be folded.
PIPED_WIDTH = 240
# Wider than any line.
UNCUT_WIDTH = 1000
# Longer than any number that a flag or a file may hold, with separators.
_LONG_NUMBER = re.compile(r"([0-9]{20})[0-9,]{30,}")


def replace_unencodable() -> None:
    """Print a "?" for what stdout's encoding lacks, so that it ends no command.

    typer shortens a long help with an ellipsis, and a path may hold anything. stderr needs no such
    rule, because it escapes them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@cache
def console(*, stderr: bool = False) -> Console:
    """Return the console of stdout or stderr. It has colour and the terminal's width on a terminal,
    and is plain and wide if piped.
    """
    probe = Console(stderr=stderr)
    if probe.is_terminal:
        return probe
    return Console(stderr=stderr, width=PIPED_WIDTH, color_system=None)


def print_uncut(part: Table | Text) -> None:
    """Print a result on stdout. What is too wide for the terminal goes on in its next line, because
    rich would cut the numbers in it.
    """
    to = console()
    size = to.size
    # Both are set, because rich takes a dumb terminal for 80 columns if the height is not set too.
    to.size = UNCUT_WIDTH, size.height
    to.print(part, soft_wrap=True)
    to.size = size


def say(message: str) -> None:
    """Print one line on stderr without markup, with unprintable characters escaped."""
    console(stderr=True).print(Text(shown_whole(message)), soft_wrap=True)


def print_error(message: str) -> None:
    """Print one red line on stderr, with numbers of absurd length cut.

    Unprintable characters are escaped, because a name in a file may hold one that ends the line.
    """
    text = shown_whole(message)
    short = _LONG_NUMBER.sub(lambda found: f"{found[1]}... ({len(found[0])} characters)", text)
    line = Text.assemble(("error: ", "bold red"), (short, "red"))
    console(stderr=True).print(line, soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show a spinner on a terminal while something without steps is done. Show nothing if stderr is
    piped.
    """
    to = console(stderr=True)
    spinner = "line" if to.options.ascii_only else "dots"
    with to.status(what, spinner=spinner) if to.is_terminal else nullcontext():
        yield


def say_when_piped(message: str) -> None:
    """Print one line for a log if stderr is no terminal. On a terminal a progress bar shows the
    same.
    """
    if not console(stderr=True).is_terminal:
        say(message)


class TerminalProgress:
    """This class is the commands' ``Progress``. It prints on stderr, with bars and spinners if that
    is a terminal.
    """

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
