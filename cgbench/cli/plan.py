"""``cgbench plan`` prints capture sizes of a policy, padding and eager holes. It needs no model and
no GPU.
"""

from pathlib import Path
from typing import Annotated

import typer

from cgbench.cli.bench_flags import Debug, Unit, policy_name
from cgbench.cli.choices import Format, chosen_format
from cgbench.cli.console import console, print_uncut, say, working
from cgbench.cli.plan_inputs import (
    budget,
    check_line,
    check_together,
    costs_at,
    given,
    graph_memory,
)
from cgbench.cli.values import parse_ints, parse_names
from cgbench.errors import BadInputError
from cgbench.planning import MAX_BATCH_SIZE, CaptureUnit, PlanRequest
from cgbench.planning.costs import EAGER_PENALTY
from cgbench.planning.flags import check_engine, option_of
from cgbench.planning.gpus import parse_gpu
from cgbench.planning.plan_questions import asked_of_line, defaulted, study_asked
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.planning.request_trace import read_workload
from cgbench.planning.study import DEFAULT_MAX_GRAPHS, Outcome, requests_for, savings
from cgbench.tables.plan import markdown, terminal
from cgbench.tables.plan_plot import check_plot, write_plot
from cgbench.tables.plan_rows import plan_csv, plan_json

DEFAULT_MAX_NUM_SEQS = 256


def plan(
    spec_tokens: Annotated[
        str | None,
        typer.Option(help="Draft tokens k per iteration, 0 to 32, a table each. Default: 3."),
    ] = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help=f"Most requests that decode together, up to {MAX_BATCH_SIZE:,}. Default: 256, or "
            "with --gpu the engine's own."
        ),
    ] = None,
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
    given_format: Annotated[
        Format | None, typer.Option("--format", help="How to print. Default: table.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As --format json.")] = False,
    tp: Annotated[int, typer.Option(help="GPUs per engine, for the engines with a rule.")] = 1,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            help=f"Most tokens in one forward. Default: {DEFAULT_MAX_BATCHED_TOKENS}, or with "
            "--gpu the engine's own."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Take the engine's own defaults on this GPU: a name such as h200 or l40, or its "
            "memory, such as 80GiB."
        ),
    ] = None,
    interactivity: Annotated[
        bool, typer.Option("--interactivity", help="vLLM's mode: every size from 1 to 32 tokens.")
    ] = False,
    module_per_draft: Annotated[
        bool,
        typer.Option(
            "--module-per-draft", help="SGLang's multi-layer mode: an MTP module, a graph, a draft."
        ),
    ] = False,
    launch_line: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="LINE",
            help="The line that starts your engine, in quotes: vllm serve, sglang.launch_server, "
            "trtllm-serve or FastDeploy's api_server. The plan is the engine's own for it.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Your engine's configuration file, in YAML, with --from or alone."),
    ] = None,
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
            help="Workload: a histogram, a log (vLLM's --cudagraph-metrics too), a request trace "
            "with --costs, or geometric:8, uniform:1-64, constant:6."
        ),
    ] = None,
    acceptance_length: Annotated[
        float | None,
        typer.Option(
            help="Tokens a request and iteration of a request trace. Default: --costs measured it."
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
        typer.Option(help="Most memory of optimal's graphs, such as 512MiB. Needs --costs."),
    ] = None,
    max_capture_seconds: Annotated[
        float | None, typer.Option(help="Longest capture of optimal's graphs. Needs --costs.")
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

    Exit code 0: at least one plan. A refused one is shown with its reason. 2: bad input, or every
    plan is refused.
    """
    if plot:
        check_plot(plot)
    if flags is not None:
        check_engine(flags)
    output_format = chosen_format(given_format, Format.TABLE, as_json=as_json)
    check_together(flags, output_format, costs, eager_penalty)
    found_gpu = None if gpu is None else parse_gpu(gpu)
    if launch_line is not None or config is not None:
        check_line(
            {
                "--spec-tokens": spec_tokens,
                "--max-num-seqs": max_num_seqs,
                "--max-num-batched-tokens": max_num_batched_tokens,
                "--capture-sizes": capture_sizes,
                "--capture-unit": None if capture_unit is CaptureUnit.REQUESTS else capture_unit,
                "--tp": None if tp == 1 else tp,
                "--blackwell": blackwell or None,
                "--no-padding": no_padding or None,
                "--interactivity": interactivity or None,
                "--module-per-draft": module_per_draft or None,
            }
        )
        limits = budget(max_graphs, max_memory, max_capture_seconds)
        beside = [] if policy is None else parse_names(policy)
        asked = asked_of_line(launch_line, config, found_gpu, beside, limits)
        if flags and len(asked) == 2:
            # The line has its own sizes already. Those of the policy beside it are to be pasted.
            asked = asked[1:]
    else:
        base = PlanRequest(
            spec_tokens=0,
            max_batch_size=DEFAULT_MAX_NUM_SEQS if max_num_seqs is None else max_num_seqs,
            policy="explicit",
            capture_sizes=_sizes(capture_sizes),
            capture_unit=capture_unit,
            max_num_batched_tokens=max_num_batched_tokens
            if max_num_batched_tokens is not None
            else DEFAULT_MAX_BATCHED_TOKENS,
            blackwell=blackwell,
            pad=not no_padding,
            tp_size=tp,
            interactivity=interactivity,
            module_per_draft=module_per_draft,
        )
        base = budget(max_graphs, max_memory, max_capture_seconds).of(base)
        names = parse_names(policy_name(policy, capture_sizes))
        lengths = parse_ints("--spec-tokens", "3" if spec_tokens is None else spec_tokens)
        fields = given(max_num_seqs, max_num_batched_tokens, no_padding=no_padding)
        asked = [defaulted(each, found_gpu, fields) for each in requests_for(base, names, lengths)]
    requests = [each.request for each in asked]
    if flags and len({each.policy for each in requests}) > 1:
        raise BadInputError(f"--flags {flags}: goes with one --policy, whose sizes it prints")
    lengths_asked = {k for each in asked for k in each.lengths}
    known = {k: costs_at(k, costs, eager_penalty) for k in lengths_asked}
    workload = None if concurrency is None else read_workload(concurrency)
    with working("planning"):
        outcomes = study_asked(
            [each.with_costs(known) for each in asked],
            workload,
            acceptance_length,
            graph_memory(costs),
        )
    if flags and output_format is Format.TABLE:
        _print_flags(flags, outcomes)
    else:
        _print(outcomes, output_format, flags)
    if plot:
        write_plot(outcomes, plot)
        say(f"written to {plot}")


def _sizes(text: str | None) -> tuple[int, ...]:
    return () if text is None else parse_ints("--capture-sizes", text)


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
    """Print the option alone on stdout, to paste or to pipe. Refusals and warnings go to stderr."""
    # All of them before any is printed, because one may be refused.
    options = [
        option_of(engine, outcome.request, outcome.plan) if outcome.plan else None
        for outcome in outcomes
    ]
    for outcome, option in zip(outcomes, options, strict=True):
        k = outcome.request.spec_tokens
        about = f"k = {k}: " if len(outcomes) > 1 else ""
        if outcome.plan is None or option is None:
            say(f"refused: {about}{outcome.refusal}")
            continue
        if about:
            typer.echo(f"# k = {k}")
        typer.echo(option.text)
        for warning in (*outcome.plan.warnings, *option.warnings):
            say(f"warning: {about}{warning}")
