"""``cgbench run``: load, plan, capture, decode, write a run directory."""

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
    Tp,
    TpHead,
    policy_name,
)
from cgbench.cli.choices import ChatTemplate, Device, Dtype, HeadPlacement, RoleName, Unit
from cgbench.cli.console import console, progress, say, say_when_piped
from cgbench.cli.head_flags import (
    ChainNorm,
    HeadConcat,
    HeadFamilyName,
    HeadFirstEmbed,
    HeadHidden,
    HeadRef,
    wiring,
)
from cgbench.cli.parsing import parse_ints, parse_optional_ints, parse_scopes
from cgbench.cli.prepare import capture_graphs, prepare, use_passive_threads
from cgbench.errors import BadInputError, ExitCode, RankFailedError, foremost
from cgbench.parallel.launch import ranks_asked, run_on_ranks
from cgbench.report.schema import Status

if TYPE_CHECKING:
    from cgbench.measure.bench import Bench
    from cgbench.report.schema import Sample
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
        typer.Option(help="Timed iterations per cell. Default: 100 on CUDA, 40 on CPU."),
    ] = None,
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
    tp: Tp = None,
    tp_head: TpHead = HeadPlacement.DIVIDED,
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
    save_tokens: Annotated[
        bool, typer.Option("--save-tokens", help="Write tokens.jsonl: prompts and outputs.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON instead of a table.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Measure multi-step speculative decode: eager, a graph a phase, one graph an iteration."""
    started = datetime.now(UTC)
    num_ranks = ranks_asked(tp)
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
        "acceptance": acceptance,
        "ignore_eos": ignore_eos,
        "seed": seed,
        "device": device.value,
        "dtype": dtype.value,
        "attention": attention,
        "tp": num_ranks if num_ranks > 1 else None,
        "tp_head": tp_head.value if num_ranks > 1 else None,
        "role": role.value,
        "max_num_batched_tokens": max_num_batched_tokens,
        "save_tokens": save_tokens,
    }
    if resume and output is None:
        raise BadInputError("--resume: needs --output, the run directory to go on with")
    path = output or DEFAULT_OUTPUT / f"{started:%Y%m%dT%H%M%SZ}-{_slug(model)}"
    use_passive_threads()
    try:
        statuses = run_on_ranks(
            num_ranks, device.value, execute, arguments, path, resume=resume, as_json=as_json
        )
    except RankFailedError as error:
        raise _with_what_is_kept(error, path) from error
    raise typer.Exit(foremost([EXIT_CODES[status] for status in statuses]))


def _with_what_is_kept(error: RankFailedError, path: Path) -> RankFailedError:
    """The finished batch sizes outlive the ranks."""
    if error.exit_code is not ExitCode.CANNOT or not (path / "run.json").exists():
        return error
    hint = f"{error}; finished batch sizes are kept: --output {path} --resume goes on"
    return RankFailedError(hint, error.exit_code)


def execute(arguments: dict[str, Any], path: Path, *, resume: bool, as_json: bool) -> set[Status]:
    """The main job, on every rank; returns every cell's status."""
    from cgbench.measure.setup import make_record
    from cgbench.parallel.ranks import is_first
    from cgbench.report.store import RunDirectory

    if is_first():
        RunDirectory.check(path, resume=resume)
    bench, notes = prepare(arguments)
    record = make_record(arguments, bench, notes)
    directory = None
    if is_first():
        directory = (RunDirectory.resume if resume else RunDirectory.create)(path, record)
    for note in notes:
        say(note)
    try:
        _capture(bench, directory)
        _measure(bench, directory, save_tokens=arguments["save_tokens"])
    finally:
        bench.release()
    return set() if directory is None else _show(directory, bench.model.label, as_json=as_json)


def _show(directory: "RunDirectory", label: str, *, as_json: bool) -> set[Status]:
    """Finish the run and print it; returns every cell's status."""
    from cgbench.report.tables import latency_table, to_json

    frame = directory.finish()
    if as_json:
        typer.echo(to_json(frame, directory.record, directory.path))
    else:
        console().print(latency_table(frame, label))
        say(f"written to {directory.path}")
    return {Status(status) for status in frame["status"]}


def _capture(bench: "Bench", directory: "RunDirectory | None") -> None:
    """Only rank 0 has a directory to write the ledger to."""
    facts = capture_graphs(bench)
    if facts is None or directory is None:
        return
    directory.record.capture = facts
    directory.write_capture([c for graphs in bench.graph_sets.values() for c in graphs.costs])


def _measure(bench: "Bench", directory: "RunDirectory | None", *, save_tokens: bool) -> None:
    from cgbench.measure.group import measure_group, num_steps
    from cgbench.parallel.ranks import agreed, barrier

    finished = agreed(set() if directory is None else directory.finished_batch_sizes)
    todo = [n for n in bench.options.batch_sizes if n not in finished]
    with progress() as bar:
        for batch_size in todo:
            task = bar.add_task(f"batch size {batch_size}", total=num_steps(bench, batch_size))
            group = measure_group(bench, batch_size, partial(bar.advance, task))
            if directory is not None:
                tokens = group.tokens if save_tokens else ()
                directory.write_group(group.cells, group.samples, tokens)
                _report_collectives(group.samples, directory)
                say_when_piped(f"measured batch size {batch_size}")
                _report(group.failures, directory)
            # No rank goes on to what may end it before this batch size is on disk.
            barrier(f"what follows batch size {batch_size}")


def _report_collectives(samples: "list[Sample]", directory: "RunDirectory") -> None:
    """What the ranks' collectives take of each cell's iteration: told, and kept in the record."""
    from cgbench.report.collectives import collective_shares

    for share in collective_shares(samples):
        directory.record.model["tensor_parallel"]["collectives"].append(share.facts)
        say(share.text)


def _report(failures: list[str], directory: "RunDirectory") -> None:
    """Cells that answer wrongly are told at once, and kept in the record."""
    for failure in failures:
        line = f"audit failed: {failure}; `cgbench audit` with the same flags says more"
        directory.record.warnings.append(line)
        say(line)


def _slug(model: str) -> str:
    """A model reference as part of a folder's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model).name)
