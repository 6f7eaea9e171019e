"""The command line as a test calls it: here, in the test's process, or apart, in one of its own."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import typer.main

from cgbench.cli.app import main

# Small enough for a second on one core; --device, so that a machine with a GPU does the same.
FAST = (
    *("--device", "cpu", "--batch-sizes", "1,2", "--iterations", "2"),
    *("--max-time", "0", "--max-new-tokens", "8", "--context-len", "12"),
)

# What makes rich and typer colour their output even where it is piped.
COLOURING = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "CLICOLOR_FORCE")


# Typer makes every command of an app anew for each call. A process calls it once.
COMMANDS = cache(typer.main.get_command)


@dataclass(frozen=True)
class Done:
    """What a caller sees of a command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The error line: there is exactly one, nothing follows it, and there is no traceback."""
        lines = self.stderr.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.stderr
        assert "Traceback" not in self.stderr and self.stdout == ""
        return lines[-1]

    def refused(self, code: int, *words: str) -> None:
        """It ended with ``code`` and one line that holds every one of ``words``."""
        assert self.code == code, self.stderr
        assert [word for word in words if word not in self.error] == []


def cgbench(*args: object) -> Done:
    """The console script's own ``main``, so that exit codes and error lines are the real ones."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with (
        mock.patch.object(sys, "argv", ["cgbench", *map(str, args)]),
        mock.patch.object(typer.main, "get_command", COMMANDS),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


def python(*args: object) -> Done:
    """A Python process of its own, with both outputs piped and the terminal's wishes forgotten."""
    env = {name: value for name, value in os.environ.items() if name not in COLOURING}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=root,
        env=env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
    )
    return Done(done.returncode, done.stdout, done.stderr)
