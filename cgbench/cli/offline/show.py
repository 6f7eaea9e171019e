"""``cgbench show`` prints a run's tables again."""

from pathlib import Path
from typing import Annotated

import typer

from cgbench.cli.bench_flags import Debug
from cgbench.cli.run_output import print_run


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

    print_run(RunDirectory.open(run), as_json=as_json, explain=explain, wide=wide)
