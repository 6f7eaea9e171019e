"""``cgbench show`` prints a run's tables again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgbench.cli.bench_flags import Debug
from cgbench.cli.console import say
from cgbench.cli.run_output import print_run
from cgbench.request.command_line import resume_command

if TYPE_CHECKING:
    from cgbench.rundir.store import RunDirectory


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, finished or not.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON instead of a table.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what each floor is made of, stage by stage.")
    ] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="Print every column of the table that has a value.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print the tables of a run again, as cgbench run printed them.

    Exit code 0: printed. 2: a file of the run is missing or damaged.
    """
    from cgbench.rundir.store import RunDirectory

    opened = RunDirectory.open(run)
    print_run(opened, as_json=as_json, explain=explain, wide=wide)
    if not opened.record.complete:
        say(f"{run} is not finished{_how_to_finish(opened)}")


def _how_to_finish(run: "RunDirectory") -> str:
    """Return what goes on with the run. Nothing does if another engine made it."""
    if run.record.engine.get("name"):
        return ""
    return f". This goes on: {resume_command(run.record.arguments, run.path)}"
