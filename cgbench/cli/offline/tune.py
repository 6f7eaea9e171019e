"""``cgbench tune`` finds which k pays, and at which batch size."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgbench.cli.bench_flags import Debug
from cgbench.cli.console import console, print_uncut, say
from cgbench.cli.values import parse_fraction
from cgbench.errors import BadInputError, CannotError, ExitCode, foremost
from cgbench.inputs import check_known

if TYPE_CHECKING:
    from cgbench.advice.advise import Advice
    from cgbench.rundir.store import RunDirectory

ENGINES = ("vllm", "tensorrt-llm", "sglang")


def tune(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories of one model and machine, measured at several k.",
        ),
    ],
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="Mean acceptance lengths to reckon with: golden:NAME, length:L or "
            "synthetic:RATE,RATE,... Default: what the run measured. None is assumed."
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Workload: a histogram or log file, geometric:8, uniform:1-64 or constant:6. "
            "Default: every measured batch size alike."
        ),
    ] = None,
    against: Annotated[
        int | None, typer.Option(help="The fixed k that serves today: its gain alone is shown.")
    ] = None,
    min_effect: Annotated[
        str, typer.Option(help="Smallest gain in tokens a second that counts, such as 1%.")
    ] = "1%",
    confidence: Annotated[
        str, typer.Option(help="That all intervals hold the truth, such as 95%.")
    ] = "95%",
    flags: Annotated[
        str | None,
        typer.Option(help=f"Print the option to paste alone: of {', '.join(ENGINES)}."),
    ] = None,
    surface: Annotated[
        bool,
        typer.Option(
            "--surface",
            help="Also print the iteration's time for every k between the measured ones and every "
            "power of two of requests: measured, or predicted with an interval.",
        ),
    ] = False,
    verify: Annotated[
        Path | None,
        typer.Option(
            help="Measure what is advised again, on this machine, into this new folder, and set "
            "it beside what was predicted."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Say which k pays and which schedule to paste, from runs at several k.

    Exit code 0: answered. 1: --verify finds another time or gain than was predicted. 2: bad
    input. 3: runs that make no one table. 4: acceptance is known, and the data cannot tell any k
    from another.
    """
    from cgbench.advice.advise import Question, advise
    from cgbench.planning import Concurrency
    from cgbench.rundir.store import RunDirectory
    from cgbench.tables.tune import to_json

    if flags is not None:
        check_known("--flags", [flags], ENGINES)
    if verify is not None and (as_json or flags is not None):
        raise BadInputError(f"--verify {verify}: not with --json or --flags. Drop one")
    question = Question(
        acceptance=acceptance,
        concurrency=None if concurrency is None else Concurrency.parse(concurrency),
        against=against,
        confidence=parse_fraction("--confidence", confidence, "95% or 0.95"),
        min_effect=parse_fraction("--min-effect", min_effect, "1% or 0.01"),
    )
    opened = [RunDirectory.open(path) for path in runs]
    _say_unfinished(opened)
    found = advise(opened, question)
    if as_json:
        typer.echo(to_json(found, with_surface=surface))
    elif flags is not None:
        _print_option(found, flags)
    else:
        _print(found)
        if surface:
            _print_surface(found)
    codes = {found.exit_code} if verify is None else {_verify(found, opened, verify)}
    raise typer.Exit(foremost(codes))


def _say_unfinished(runs: "list[RunDirectory]") -> None:
    for run in runs:
        if not run.record.complete:
            say(f"warning: {run.path} is not finished. Only its finished batch sizes are read")


def _print_option(found: "Advice", engine: str) -> None:
    from cgbench.tables.tune import conclusions, options_text

    texts = [*options_text(found, engine)]
    for line in conclusions(found):
        say(line)
    if not texts:
        refused = (each.refusals[engine] for each in found.contexts if engine in each.refusals)
        why = next(refused, "no schedule and no k above 0 is advised")
        raise CannotError(f"--flags {engine}: {why}")
    for text in texts:
        typer.echo(text)


def _verify(found: "Advice", runs: "list[RunDirectory]", output: Path) -> ExitCode:
    from cgbench.cli.offline.verify import verify

    return verify(found, runs, output)


def _print_surface(found: "Advice") -> None:
    from cgbench.advice.surface import LEAST_CELLS, grid, surface_of
    from cgbench.tables.surface import error_line, surface_part

    fitted = surface_of(found.times)
    if fitted is None:
        raise CannotError(
            f"--surface: {len(found.times.cells)} cells are too few to predict others and to tell "
            f"how well. Measure {LEAST_CELLS}, such as cgbench run --spec-tokens 0-8 "
            "--batch-sizes 1-64"
        )
    print_uncut(surface_part(fitted, grid(found.times)).terminal(console().width))
    typer.echo(error_line(fitted))


def _print(found: "Advice") -> None:
    from cgbench.tables.tune import terminal

    for part in terminal(found, console().width):
        print_uncut(part)
    for each in found.contexts:
        for option in each.options:
            typer.echo(f"\n# {option.engine}, context {each.context_len}: {option.note}")
            typer.echo(option.text)
