"""``cgbench run``: load, plan, capture, decode, write a run directory."""

from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgbench.cli.bench_flags import (
    Attention,
    CaptureSizes,
    CaptureUnit,
    Chat,
    CompileMode,
    Debug,
    DeviceName,
    DtypeName,
    MaxBatchedTokens,
    Model,
    NumPrompts,
    Policy,
    Prompts,
    Scopes,
    SpecTokens,
    policy_name,
)
from cgbench.cli.choices import ChatTemplate, Compile, Device, Dtype, RoleName, Unit
from cgbench.cli.console import console, progress, say, say_when_piped, working
from cgbench.cli.head_flags import (
    ChainNorm,
    HeadConcat,
    HeadFamilyName,
    HeadFirstEmbed,
    HeadHidden,
    HeadRef,
    wiring,
)
from cgbench.cli.parsing import parse_fraction, parse_ints, parse_optional_ints, parse_scopes
from cgbench.cli.prepare import capture_graphs, prepare, use_passive_threads
from cgbench.cli.processes import measure_in_processes
from cgbench.errors import BadInputError, ExitCode, foremost
from cgbench.report.schema import Status

if TYPE_CHECKING:
    from cgbench.measure.bench import Bench
    from cgbench.report.store import RunDirectory

DEFAULT_OUTPUT = Path("results/runs")

EXIT_CODES = {
    Status.OK: ExitCode.OK,
    Status.AUDIT_FAILED: ExitCode.ANSWER_IS_NO,
    Status.OOM: ExitCode.CANNOT,
    Status.DISTURBED: ExitCode.INCONCLUSIVE,
}


def run(
    model: Model = "default",
    spec_tokens: SpecTokens = "3",
    batch_sizes: Annotated[str, typer.Option(help="Requests that decode together.")] = "1,2,4,8",
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Most requests at once. Default: the largest batch size.")
    ] = None,
    scopes: Scopes = "eager,phase,iteration",
    policy: Policy = None,
    capture_sizes: CaptureSizes = None,
    capture_unit: CaptureUnit = Unit.REQUESTS,
    head: HeadRef = None,
    head_family: HeadFamilyName = None,
    head_concat: HeadConcat = None,
    head_hidden: HeadHidden = None,
    chain_norm: ChainNorm = None,
    head_first_embed: HeadFirstEmbed = None,
    prompts: Prompts = None,
    num_prompts: NumPrompts = None,
    chat_template: Chat = ChatTemplate.AUTO,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens generated per request.")] = 64,
    context_len: Annotated[
        int, typer.Option(help="Tokens already in KV when timing starts; those of a random prompt.")
    ] = 256,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Timed iterations of a block at k = 0; at other k, those that span the same "
            "context. Default: 24 on CUDA, 16 on CPU."
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="Time blocks until every graph cell's median is known to this share."),
    ] = "0.5%",
    min_time: Annotated[
        float | None,
        typer.Option(help="Seconds of timing per batch size, at least. Default: 1, or --max-time."),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            help="Seconds of timing per batch size, at most, but 8 blocks in any case. "
            "Default: 30 on CUDA, 10 on CPU."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Measure all of it again in N fresh processes.")
    ] = 1,
    cold_l2: Annotated[
        bool, typer.Option("--cold-l2", help="Flush the GPU's L2 cache before each iteration.")
    ] = False,
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="greedy; sampled, or sampled:SETTINGS of temperature=T, top-k=N, top-p=P and "
            "drafts=greedy; or synthetic:0.8,0.6,0.4: drafts kept at unconditional rates. "
            "Default: greedy, for a preset synthetic."
        ),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Generate to --max-new-tokens, past any EOS.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of random weights and random prompts.")] = 0,
    device: DeviceName = Device.AUTO,
    dtype: DtypeName = Dtype.AUTO,
    attention: Attention = "auto",
    compile_mode: CompileMode = Compile.OFF,
    role: Annotated[
        RoleName,
        typer.Option(help="The dummy run before capture: mixed (prefill too) or decode."),
    ] = RoleName.MIXED,
    max_num_batched_tokens: MaxBatchedTokens = 8192,
    output: Annotated[
        Path | None, typer.Option(help="Run directory. Default: results/runs/<utc>-<model>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run in --output.")
    ] = False,
    nvtx: Annotated[
        bool,
        typer.Option(
            "--nvtx",
            help="Mark prefill, captures, replays and eager stages for profilers. A graph is one "
            "range: for the kernels inside use nsys --cuda-graph-trace=node, or scope eager.",
        ),
    ] = False,
    thin: Annotated[
        bool,
        typer.Option("--thin", help="Keep what compare needs, 1 MB at most: a baseline to commit."),
    ] = False,
    save_tokens: Annotated[
        bool, typer.Option("--save-tokens", help="Write tokens.jsonl: prompts and outputs.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON instead of a table.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what each floor is made of, stage by stage.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Measure multi-step speculative decode: eager, a graph a phase, one graph an iteration."""
    started = datetime.now(UTC)
    arguments: dict[str, Any] = {
        "model": model,
        "spec_tokens": [*parse_ints("--spec-tokens", spec_tokens)],
        "batch_sizes": [*parse_ints("--batch-sizes", batch_sizes)],
        "max_num_seqs": max_num_seqs,
        "scopes": [*parse_scopes(scopes)],
        "policy": policy_name(policy, capture_sizes),
        "capture_sizes": parse_optional_ints("--capture-sizes", capture_sizes),
        "capture_unit": capture_unit.value,
        "head": head,
        **wiring(head_family, head_concat, head_hidden, chain_norm, head_first_embed),
        "prompts": prompts,
        "num_prompts": num_prompts,
        "chat_template": chat_template.value,
        "max_new_tokens": max_new_tokens,
        "context_len": context_len,
        "iterations": iterations,
        "precision": parse_fraction("--precision", precision),
        "min_time": min_time,
        "max_time": max_time,
        "processes": processes,
        "cold_l2": cold_l2,
        "acceptance": acceptance,
        "ignore_eos": ignore_eos,
        "seed": seed,
        "device": device.value,
        "dtype": dtype.value,
        "attention": attention,
        "compile": compile_mode.value,
        "role": role.value,
        "max_num_batched_tokens": max_num_batched_tokens,
        "nvtx": nvtx,
        "save_tokens": save_tokens,
    }
    if thin and save_tokens:
        raise BadInputError("--thin: keeps no tokens; leave out --save-tokens")
    if resume and output is None:
        raise BadInputError("--resume: needs --output, the run directory to go on with")
    path = output or DEFAULT_OUTPUT / f"{started:%Y%m%dT%H%M%SZ}-{_slug(model)}"
    statuses = execute(arguments, path, resume=resume, thin=thin, as_json=as_json, explain=explain)
    raise typer.Exit(foremost([EXIT_CODES[status] for status in statuses]))


def execute(
    arguments: dict[str, Any],
    path: Path,
    *,
    resume: bool,
    thin: bool,
    as_json: bool,
    explain: bool,
) -> set[Status]:
    """The main job; returns every cell's status."""
    from cgbench.report.tables import latency_table, to_json

    measure_all = measure if arguments["processes"] == 1 else measure_in_processes
    directory = measure_all(arguments, path, resume=resume)
    frame = directory.latency()
    if as_json:
        typer.echo(to_json(frame, directory.record, path))
    else:
        console().print(latency_table(frame, directory.record.model["label"]))
        if explain:
            _explain(directory)
        say(f"written to {path}")
    if thin:
        _make_thin(directory)
    return {Status(status) for status in frame["status"]}


def measure(arguments: dict[str, Any], path: Path, *, resume: bool) -> "RunDirectory":
    """Load, capture, measure and write, in this process; returns the finished run."""
    use_passive_threads()
    from cgbench.measure.setup import make_record
    from cgbench.measure.telemetry import Watch, open_telemetry
    from cgbench.report.store import RunDirectory

    RunDirectory.check(path, resume=resume)
    bench, notes = prepare(arguments)
    record = make_record(arguments, bench, notes)
    directory = (RunDirectory.resume if resume else RunDirectory.create)(path, record)
    for note in notes:
        say(note)
    try:
        _measure_limits(bench, directory)
        _capture(bench, directory)
        with open_telemetry(bench.device) as telemetry:
            bench.watch = Watch(telemetry)
            _measure(bench, directory, save_tokens=arguments["save_tokens"])
    finally:
        bench.release()
    directory.finish()
    return directory


def _measure_limits(bench: "Bench", directory: "RunDirectory") -> None:
    """Before the graphs take their memory, and while nothing else runs."""
    with working("measure read bandwidth and matrix rate"):
        limits = bench.floor.limits
    directory.record.floor["limits"] = asdict(limits)


def _capture(bench: "Bench", directory: "RunDirectory") -> None:
    facts = capture_graphs(bench)
    if facts is None:
        return
    directory.record.capture |= facts
    directory.write_capture([c for graphs in bench.graph_sets.values() for c in graphs.costs])


def _measure(bench: "Bench", directory: "RunDirectory", *, save_tokens: bool) -> None:
    from cgbench.measure.group import measure_group, num_steps
    from cgbench.report.account import keep_accounts

    todo = [n for n in bench.options.batch_sizes if n not in directory.finished_batch_sizes]
    with progress() as bar:
        for batch_size in todo:
            task = bar.add_task(f"batch size {batch_size}", total=num_steps(bench, batch_size))
            group = measure_group(bench, batch_size, partial(bar.advance, task))
            tokens = group.tokens if save_tokens else ()
            keep_accounts(directory.record, batch_size, group.accounts)
            # Before the group counts as finished, for after a kill nothing would tell of it.
            _report([*map(_failed, group.failures), *group.doubts], directory)
            directory.write_group(group.cells, group.samples, tokens, group.blocks)
            say_when_piped(f"measured batch size {batch_size}")


def _failed(failure: str) -> str:
    return f"audit failed: {failure}; `cgbench audit` with the same flags says more"


def _make_thin(directory: "RunDirectory") -> None:
    from cgbench.report.compare.thin import make_thin

    num_bytes = make_thin(directory)
    say(f"kept as a thin baseline: {num_bytes} bytes")


def _explain(directory: "RunDirectory") -> None:
    from cgbench.report.floor_tables import account_tables

    for table in account_tables(directory.record, directory.samples()):
        console().print(table)


def _report(lines: list[str], directory: "RunDirectory") -> None:
    """What is wrong with a group is told at once, and kept in the record."""
    warnings = directory.record.warnings
    warnings += [line for line in lines if line not in warnings]
    for line in lines:
        say(line)


def _slug(model: str) -> str:
    """A model reference as part of a folder's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model).name)
