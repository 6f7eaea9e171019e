"""``cgbench plan``: capture sizes of a policy, padding, eager holes; no model, no GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cgbench.cli.bench_flags import Debug, Unit, policy_name
from cgbench.cli.choices import Format
from cgbench.cli.console import console, print_uncut, say, working
from cgbench.cli.values import parse_bytes, parse_ints, parse_names
from cgbench.errors import BadInputError
from cgbench.planning import MAX_BATCH_SIZE, CaptureUnit, Concurrency, Costs, PlanRequest
from cgbench.planning.costs import EAGER_PENALTY
from cgbench.planning.flags import check_engine, flag_warnings, flags_for
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.planning.study import DEFAULT_MAX_GRAPHS, Outcome, requests_for, savings, study
from cgbench.tables.plan import markdown, terminal
from cgbench.tables.plan_plot import check_plot, write_plot
from cgbench.tables.plan_rows import plan_csv, plan_json


def plan(
    spec_tokens: Annotated[
        str, typer.Option(help="Draft tokens k per iteration, 0 to 8; a table each.")
    ] = "3",
    max_num_seqs: Annotated[
        int, typer.Option(help=f"Most requests that decode together, up to {MAX_BATCH_SIZE:,}.")
    ] = 256,
    policy: Annotated[
        str | None,
        typer.Option(
            help="A policy, several with commas between, or all, which names them. Default: scaled."
        ),
    ] = None,
    capture_sizes: Annotated[
        str | None, typer.Option(help="Your own sizes, in --capture-unit: policy explicit.")
    ] = None,
    capture_unit: Unit = CaptureUnit.REQUESTS,
    output_format: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
    tp: Annotated[int, typer.Option(help="GPUs per engine, for the engines with a rule.")] = 1,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Most tokens in one forward.")
    ] = DEFAULT_MAX_BATCHED_TOKENS,
    blackwell: Annotated[
        bool, typer.Option("--blackwell", help="Data-centre Blackwell: vLLM's higher ceiling.")
    ] = False,
    no_padding: Annotated[
        bool,
        typer.Option(
            "--no-padding", help="Engine's padding to a bucket switched off, where it can be."
        ),
    ] = False,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Workload: a histogram or log file, geometric:8, uniform:1-64 or constant:6."
        ),
    ] = None,
    max_graphs: Annotated[
        int | None,
        typer.Option(
            help=f"Most graphs of --policy optimal. Default: {DEFAULT_MAX_GRAPHS} without a budget."
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Most memory of optimal's graphs, such as 512MiB; needs --costs."),
    ] = None,
    max_capture_seconds: Annotated[
        float | None, typer.Option(help="Longest capture of optimal's graphs; needs --costs.")
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="Run directory whose times are the costs. Default: a cost a token."),
    ] = None,
    eager_penalty: Annotated[
        float,
        typer.Option(
            help="Without --costs: an eager iteration costs so many times a captured one."
        ),
    ] = EAGER_PENALTY,
    flags: Annotated[
        str | None,
        typer.Option(
            help="Print the option to paste alone: of fastdeploy (2.5 on: requests), "
            "fastdeploy-2.4 (tokens), vllm, sglang or tensorrt-llm. With --format json beside "
            "the plan."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write padding by batch size to FILE.png, .svg or .html.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show which graphs an engine captures, what they pad, and which list would be better.

    Exit code 0: at least one plan; a refused one is shown with its reason. 2: bad input, or every
    plan is refused.
    """
    if plot:
        check_plot(plot)
    if flags is not None:
        check_engine(flags)
    _check_together(flags, output_format, costs, eager_penalty)
    base = PlanRequest(
        spec_tokens=0,
        max_batch_size=max_num_seqs,
        policy="explicit",
        capture_sizes=_sizes(capture_sizes),
        capture_unit=capture_unit,
        max_num_batched_tokens=max_num_batched_tokens,
        blackwell=blackwell,
        pad=not no_padding,
        tp_size=tp,
        concurrency=None if concurrency is None else Concurrency.parse(concurrency),
        max_graphs=max_graphs,
        max_memory_bytes=None if max_memory is None else parse_bytes("--max-memory", max_memory),
        max_capture_s=max_capture_seconds,
    )
    names = parse_names(policy_name(policy, capture_sizes))
    requests = requests_for(base, names, parse_ints("--spec-tokens", spec_tokens))
    if flags and len({each.policy for each in requests}) > 1:
        raise BadInputError(f"--flags {flags}: goes with one --policy, whose sizes it prints")
    known = {k: _costs(k, costs, eager_penalty) for k in {each.spec_tokens for each in requests}}
    with working("planning"):
        outcomes = study(replace(each, costs=known[each.spec_tokens]) for each in requests)
    if flags and output_format is Format.TABLE:
        _print_flags(flags, outcomes)
    else:
        _print(outcomes, output_format, flags)
    if plot:
        write_plot(outcomes, plot)
        say(f"written to {plot}")


def _sizes(text: str | None) -> tuple[int, ...]:
    return () if text is None else parse_ints("--capture-sizes", text)


def _check_together(
    flags: str | None, output_format: Format, costs: Path | None, eager_penalty: float
) -> None:
    if flags and output_format not in (Format.TABLE, Format.JSON):
        raise BadInputError(
            f"--format {output_format}: holds no --flags; use json, or leave it out"
        )
    if costs and eager_penalty != EAGER_PENALTY:
        raise BadInputError("--eager-penalty: not with --costs, where eager is measured; drop one")


def _costs(spec_tokens: int, run: Path | None, eager_penalty: float) -> Costs:
    if run is None:
        return Costs.in_tokens(spec_tokens + 1, eager_penalty)
    # pandas is worth its half second only here.
    from cgbench.rundir.run_costs import read_costs

    return read_costs(run, spec_tokens)


def _print(outcomes: list[Outcome], output_format: Format, engine: str | None) -> None:
    with working("comparing"):
        saved = savings(outcomes)
    match output_format:
        case Format.TABLE:
            for part in terminal(outcomes, saved, console().width):
                print_uncut(part)
        case Format.MARKDOWN:
            typer.echo(markdown(outcomes, saved))
        case Format.CSV:
            typer.echo(plan_csv(outcomes))
        case Format.JSON:
            typer.echo(plan_json(outcomes, saved, engine))


def _print_flags(engine: str, outcomes: list[Outcome]) -> None:
    """The option alone on stdout, to paste or to pipe; what there is to say on stderr."""
    # All of them before any is printed, because one may be refused.
    texts = [outcome.plan and flags_for(engine, outcome.plan) for outcome in outcomes]
    for outcome, text in zip(outcomes, texts, strict=True):
        k = outcome.request.spec_tokens
        about = f"k = {k}: " if len(outcomes) > 1 else ""
        if outcome.plan is None:
            say(f"refused: {about}{outcome.refusal}")
            continue
        if about:
            typer.echo(f"# k = {k}")
        typer.echo(text)
        for warning in (
            *outcome.plan.warnings,
            *flag_warnings(engine, outcome.request, outcome.plan),
        ):
            say(f"warning: {about}{warning}")
