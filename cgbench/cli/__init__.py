"""This package is the command line, with one file a command. Heavy imports happen inside the
commands.
"""

from collections.abc import Sequence
from typing import NoReturn

from cgbench.cli.interrupts import end_where_imports_would_break

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the console script: see ``cgbench.cli.app.main``."""
    with end_where_imports_would_break():
        from cgbench.cli import app

        app.main(words)
