"""``cgbench power``: how many requests a benchmark needs to show a change."""

from pathlib import Path
from typing import Annotated

import typer

from cgbench.cli.bench_flags import Debug
from cgbench.cli.console import console, print_uncut
from cgbench.cli.values import parse_fraction


def power(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Result of an engine's own benchmark.")
    ],
    effect: Annotated[
        str, typer.Option(help="The change to detect, such as 5% or 0.05. Above --min-effect.")
    ] = "5%",
    power: Annotated[
        str, typer.Option(help="How often it is to be detected, such as 90%.")
    ] = "90%",
    confidence: Annotated[
        str, typer.Option(help="As of cgbench compare: that all gated intervals hold the truth.")
    ] = "95%",
    min_effect: Annotated[
        str, typer.Option(help="As of cgbench compare: smallest change that counts.")
    ] = "2%",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Say how many requests detect a change, by the noise of a result that you have.

    Exit code 0: it is printed. 2: bad input. 3: the file holds no samples.
    """
    from cgbench.gate.sample_sizes import Wanted, sample_sizes, sizes_json
    from cgbench.tables.power import sizes_part

    wanted = Wanted(
        effect=parse_fraction("--effect", effect),
        power=parse_fraction("--power", power, "90% or 0.9"),
        confidence=parse_fraction("--confidence", confidence, "95% or 0.95"),
        min_effect=parse_fraction("--min-effect", min_effect),
    )
    sizes = sample_sizes(file, wanted)
    if as_json:
        typer.echo(sizes_json(file, wanted, sizes))
        return
    print_uncut(sizes_part(file, wanted, sizes).terminal(console().width))
