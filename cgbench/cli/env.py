"""``cgbench env`` prints the machine as the results will record it."""

import json
from typing import Annotated

import typer
from rich.text import Text

from cgbench.cli.bench_flags import Debug
from cgbench.cli.console import console


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show the machine and the software as results record them."""
    from cgbench.rundir.environment import environment

    found = environment()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, value in found.items():
        line = f"{name:<{width}} {'-' if value is None else value}"
        console().print(Text(line), soft_wrap=True)
