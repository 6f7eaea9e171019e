"""Print what ``cgbench run`` shows of a finished run, and find the exit codes of its cells."""

from typing import TYPE_CHECKING

import typer

from cgbench.cli.console import console, print_error, print_uncut, say
from cgbench.errors import CannotError, ExitCode
from cgbench.words import Status

if TYPE_CHECKING:
    from cgbench.rundir.store import RunDirectory

WIDTH_OF_BARS = 50
"""The least number of columns that a terminal must have for the bars."""

EXIT_CODES = {
    Status.OK: ExitCode.OK,
    Status.AUDIT_FAILED: ExitCode.ANSWER_IS_NO,
    Status.OOM: ExitCode.CANNOT,
    Status.DISTURBED: ExitCode.INCONCLUSIVE,
    Status.FLOOR_BEATEN: ExitCode.ANSWER_IS_NO,
}


def show(
    directory: "RunDirectory", *, thin: bool, as_json: bool, explain: bool, wide: bool = False
) -> set[ExitCode]:
    """Print a finished run, and return every cell's exit code. With ``thin``, make it thin
    afterwards.
    """
    print_run(directory, as_json=as_json, explain=explain, wide=wide)
    if not as_json:
        say(f"written to {directory.path}")
    codes = {EXIT_CODES[Status(status)] for status in directory.latency()["status"]}
    if thin:
        codes.add(_make_thin(directory))
    return codes


def print_run(directory: "RunDirectory", *, as_json: bool, explain: bool, wide: bool) -> None:
    """Print the tables of a run, its largest losses, and on a terminal its rates as bars."""
    from cgbench.advice.slow_reasons import reason_lines
    from cgbench.tables.latency import latency_table, to_json
    from cgbench.tables.rate_bars import rate_bars

    frame, record = directory.latency(), directory.record
    if as_json:
        typer.echo(to_json(frame, record, directory.path))
        return
    if frame.empty:
        say("the run has no cell yet")
    print_uncut(latency_table(frame, record.model["label"], console().width, is_wide=wide))
    if explain:
        _explain(directory)
    has_room = console().is_terminal and console().width >= WIDTH_OF_BARS
    bars = rate_bars(frame) if has_room else None
    if bars is not None:
        console().print(bars)
    for line in reason_lines(directory):
        typer.echo(line)


def _make_thin(directory: "RunDirectory") -> ExitCode:
    from cgbench.rundir.thin import make_thin

    try:
        num_bytes = make_thin(directory)
    except CannotError as error:
        # This is printed and not raised, because a cell may have a worse exit code.
        print_error(str(error))
        return error.exit_code
    say(f"kept as a thin baseline: {num_bytes} bytes")
    return ExitCode.OK


def _explain(directory: "RunDirectory") -> None:
    from cgbench.tables.floor import account_tables

    for table in account_tables(directory.record, directory.samples(), console().width):
        print_uncut(table)
