"""``cgbench compare`` is the gate: it judges one run against another."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgbench.cli.bench_flags import Debug
from cgbench.cli.choices import CompareFormat, chosen_format
from cgbench.cli.console import console, print_uncut, say
from cgbench.cli.values import parse_fraction
from cgbench.errors import BadInputError
from cgbench.gate.verdicts import GATED_BY_DEFAULT, Gate
from cgbench.request.command_line import flag_name

if TYPE_CHECKING:
    from cgbench.gate.comparison import Comparison, Rules

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def compare(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="Run directory to compare with, perhaps thin, or an engine's own result file.",
        ),
    ],
    new: Annotated[
        Path | None,
        typer.Argument(
            metavar="NEW",
            help="Run directory or result file to judge. Left out: only --thin-baseline.",
        ),
    ] = None,
    min_effect: Annotated[
        str, typer.Option(help="Smallest change that counts, such as 2% or 0.02.")
    ] = "2%",
    confidence: Annotated[
        str, typer.Option(help="That all gated intervals hold the truth, such as 95%.")
    ] = "95%",
    gate: Annotated[
        str,
        typer.Option(
            help="What decides, of iteration, tpot, acceptance, memory, verify, accept, draft, "
            "commit, host-gap, capture and facts. eager adds the eager cells. Of result files, of "
            "tpot, latency, acceptance, ttft, itl and throughput, the first three by default."
        ),
    ] = ",".join(GATED_BY_DEFAULT),
    allow_token_change: Annotated[
        bool,
        typer.Option(
            "--allow-token-change", help="Changed float32 greedy tokens are told, and pass."
        ),
    ] = False,
    given_format: Annotated[
        CompareFormat | None, typer.Option("--format", help="How to print. Default: table.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As --format json.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write there instead of stdout.")] = None,
    thin_baseline: Annotated[
        Path | None,
        typer.Option(help="Also keep NEW there as a baseline of at most 1 MB, to commit."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Judge NEW against BASE, both run directories or both an engine's own results.

    Exit code 0: nothing regressed, all decided. 1: regressed. 2: bad input. 3: not comparable.
    4: inconclusive.
    """
    from cgbench.gate.comparison import Rules
    from cgbench.gate.comparison import compare as judge

    rules = Rules(
        min_effect=parse_fraction("--min-effect", min_effect),
        confidence=parse_fraction("--confidence", confidence, "95% or 0.95"),
        gate=Gate.parse(gate),
        allow_token_change=allow_token_change,
    )
    if new is None and thin_baseline is None:
        raise BadInputError("NEW: give the run directory to judge, or --thin-baseline for BASE's")
    output_format = chosen_format(given_format, CompareFormat.TABLE, as_json=as_json)
    shape = "--json" if as_json else "--format"
    shapes = [] if output_format is CompareFormat.TABLE else [shape]
    if new is None and (unread := [*shapes, *_judging(rules, output)]):
        raise BadInputError(f"{unread[0]}: without NEW nothing is judged. Give it, or drop this")
    if thin_baseline is not None:
        _keep(new or base, thin_baseline)
    if new is None:
        return
    found = judge(base, new, rules)
    _write(found, output_format, output)
    raise typer.Exit(found.exit_code)


def _judging(rules: "Rules", output: Path | None) -> Iterator[str]:
    """Yield the flags given that decide how NEW is judged, and where that goes."""
    if output is not None:
        yield "--output"
    default = asdict(type(rules)())
    yield from (flag_name(name) for name, value in asdict(rules).items() if value != default[name])


def _keep(source: Path, path: Path) -> None:
    from cgbench.rundir.thin import write_thin

    num_bytes = write_thin(source, path)
    say(f"{source} kept in {path}: {num_bytes} bytes")


def _write(found: "Comparison", output_format: CompareFormat, output: Path | None) -> None:
    from cgbench.gate.wording import summary

    if output_format is CompareFormat.GITHUB:
        _write_step_summary(found)
    if output is None:
        _print(found, output_format)
        return
    try:
        # A run's name need not be UTF-8. What is not is a "?", as on stdout.
        output.write_text(_text(found, output_format) + "\n", encoding="utf-8", errors="replace")
    except OSError as error:
        raise BadInputError(f"--output {output}: {error.strerror}") from error
    say(_empty(found, output_format) or summary(found))


def _empty(found: "Comparison", output_format: CompareFormat) -> str | None:
    from cgbench.gate.ci_formats import why_empty

    return why_empty(found) if output_format is CompareFormat.BENCHMARK_JSON else None


def _print(found: "Comparison", output_format: CompareFormat) -> None:
    from cgbench.tables.comparison import terminal

    if output_format is not CompareFormat.TABLE or not console().is_terminal:
        typer.echo(_text(found, output_format))
        if reason := _empty(found, output_format):
            say(reason)
        return
    for part in terminal(found):
        print_uncut(part)


def _text(found: "Comparison", output_format: CompareFormat) -> str:
    from cgbench.gate import ci_formats
    from cgbench.tables import comparison

    match output_format:
        case CompareFormat.TABLE:
            return comparison.plain(found)
        case CompareFormat.MARKDOWN:
            return comparison.markdown(found)
        case CompareFormat.JSON:
            return ci_formats.to_json(found)
        case CompareFormat.GITHUB:
            return ci_formats.github(found)
        case CompareFormat.JUNIT:
            return ci_formats.junit(found)
        case CompareFormat.BENCHMARK_JSON:
            return ci_formats.benchmark_json(found)


def _write_step_summary(found: "Comparison") -> None:
    """Append the comparison to the job's summary, because other steps of the job write
    there too.
    """
    from cgbench.tables.comparison import markdown

    if file := os.environ.get(STEP_SUMMARY):
        try:
            with open(file, "a", encoding="utf-8", errors="replace") as summary_file:
                summary_file.write(markdown(found) + "\n")
        except OSError as error:
            raise BadInputError(f"{STEP_SUMMARY} {file}: {error.strerror}") from error
