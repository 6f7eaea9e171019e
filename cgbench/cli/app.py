"""Gather the commands in one Typer app, and turn an exception into one line and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from cgbench import __version__
from cgbench.cli.audit import audit
from cgbench.cli.compare import compare
from cgbench.cli.console import print_error, replace_unencodable
from cgbench.cli.env import env
from cgbench.cli.inspect import inspect
from cgbench.cli.offline.power import power
from cgbench.cli.offline.report import report
from cgbench.cli.offline.show import show
from cgbench.cli.offline.tune import tune
from cgbench.cli.peers import peers
from cgbench.cli.plan import plan
from cgbench.cli.plan_inputs import quotes_hint
from cgbench.cli.prompts import prompts
from cgbench.cli.run import run
from cgbench.cli.values import check_utf8
from cgbench.errors import ExitCode, exit_code_of, one_line

# Typer exports only classes derived from these errors. Versions differ in the click that they come
# from.
_USAGE_ERRORS = typer.BadParameter.__bases__

app = typer.Typer(
    name="cgbench",
    help="Plan, capture and time CUDA graphs for speculative decoding with MTP draft heads.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"cgbench {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    """Plan, capture and time CUDA graphs for speculative decoding with MTP draft heads."""


app.command()(run)
app.command()(plan)
app.command()(audit)
app.command()(compare)
app.command()(power)
app.command()(tune)
app.command()(report)
app.command()(show)
app.command()(inspect)
app.command()(peers)
app.command()(prompts)
app.command()(env)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the console script, in which every failure is one line and a documented exit code.

    ``words`` are the command line's. Without them, they are those of the process. ``--debug`` among
    them prints the traceback before the line.
    """
    # Libraries draw their own progress bars even if output is piped. This is read when tqdm is
    # imported.
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    replace_unencodable()
    try:
        code = _run(sys.argv[1:] if words is None else [*words])
        sys.stdout.flush()
    except (SystemExit, BrokenPipeError):
        # This happens only if the reader of the output has gone. typer and rich then end with 1,
        # which means an answer.
        _discard_output()
        code = ExitCode.READER_GONE
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        check_utf8(words)
        # It is not standalone, or else a usage error would be a box of several lines. It returns
        # the code of an Exit.
        return app(words, prog_name="cgbench", standalone_mode=False) or ExitCode.OK
    except Exception as error:
        return _report(error, words)


def _discard_output() -> None:
    """Discard what is still buffered, because it has no reader. Python would print that it cannot
    be flushed.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception, words: Sequence[str]) -> ExitCode:
    if isinstance(error, _USAGE_ERRORS):
        return _report_usage(error, words)
    if "--debug" in words:
        traceback.print_exception(error)
    print_error(one_line(error))
    return exit_code_of(error)


def _report_usage(error: Any, words: Sequence[str]) -> ExitCode:
    # Without a command there is no message: the help has been printed.
    message = error.format_message().replace("\n", " ").rstrip(".")
    # Typer's own validation puts this before the message of a choice.
    message = message.replace("Value error, ", "")
    if message:
        command = error.ctx.command_path if error.ctx else "cgbench"
        print_error(f"{message}{quotes_hint(words, message)} (see {command} --help)")
    return ExitCode.BAD_INPUT
