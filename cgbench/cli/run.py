"""``cgbench run`` loads, plans, captures and decodes, and writes a run directory."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

import cgbench
from cgbench.cli.bench_flags import (
    Attention,
    CaptureSizes,
    Chat,
    CompileMode,
    Debug,
    DeviceName,
    DtypeName,
    KvDtypeName,
    MaxBatchedTokens,
    Model,
    NumPrompts,
    Policy,
    Prompts,
    QuantName,
    RoutingOf,
    Scopes,
    SpecTokens,
    Tp,
    TpHead,
    Unit,
    policy_name,
)
from cgbench.cli.console import TerminalProgress, say
from cgbench.cli.contexts import measure_contexts
from cgbench.cli.head_flags import (
    ChainNorm,
    DraftVocab,
    DraftVocabFrom,
    HeadConcat,
    HeadFamilyName,
    HeadFeed,
    HeadFirstEmbed,
    HeadHidden,
    HeadNormForm,
    HeadOutNorm,
    HeadRef,
    MtpModules,
)
from cgbench.cli.panels import GRAPHS, OUTPUT, TIMING, WORKLOAD
from cgbench.cli.run_output import show
from cgbench.cli.values import asked, parse_grid, parse_ints
from cgbench.door.processes import PARTS
from cgbench.errors import BadInputError, ExitCode, RankFailedError, RunDirectoryError, foremost
from cgbench.parallel.launch import ranks_asked
from cgbench.planning import MAX_BATCH_SIZE, CaptureUnit
from cgbench.request.choices import (
    ChatTemplate,
    Compile,
    Device,
    Dtype,
    HeadPlacement,
    KvDtype,
    QuantMode,
    Role,
)
from cgbench.request.command_line import resume_command
from cgbench.request.parts import MAX_PROCESSES
from cgbench.request.run_request import RunRequest

DEFAULT_OUTPUT = Path("results/runs")


def run(
    model: Model = "default",
    spec_tokens: SpecTokens = "3",
    batch_sizes: Annotated[
        str,
        typer.Option(
            help="Requests that decode together: 1,2,4,8, or a range 1-64: its ends and the powers "
            "of two between, and from 16 on their middles. So with --spec-tokens.",
            rich_help_panel=WORKLOAD,
        ),
    ] = "1,2,4,8",
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help=f"Most requests at once, up to {MAX_BATCH_SIZE:,}. Default: the largest batch "
            "size.",
            rich_help_panel=GRAPHS,
        ),
    ] = None,
    scopes: Scopes = "eager,phase,iteration",
    policy: Policy = None,
    capture_sizes: CaptureSizes = None,
    capture_unit: Unit = CaptureUnit.REQUESTS,
    head: HeadRef = None,
    head_family: HeadFamilyName = None,
    head_concat: HeadConcat = None,
    head_hidden_in: HeadHidden = None,
    head_chain: ChainNorm = None,
    head_out_norm: HeadOutNorm = None,
    head_norm_form: HeadNormForm = None,
    head_first_embed: HeadFirstEmbed = None,
    head_feed: HeadFeed = None,
    mtp_modules: MtpModules = None,
    draft_vocab: DraftVocab = None,
    draft_vocab_from: DraftVocabFrom = None,
    prompts: Prompts = None,
    num_prompts: NumPrompts = None,
    chat_template: Chat = ChatTemplate.AUTO,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens generated per request.", rich_help_panel=WORKLOAD)
    ] = 64,
    context_len: Annotated[
        str,
        typer.Option(
            help="Tokens already in KV when timing starts, of a random prompt. Several, such as "
            "1024,8192: a run directory each, below --output.",
            rich_help_panel=WORKLOAD,
        ),
    ] = "256",
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Timed iterations of a block at k = 0. At other k, those that span the same "
            "context. Default: 24 on CUDA, 16 on CPU.",
            rich_help_panel=TIMING,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Time on until every graph cell's median is known to this share, plus or minus.",
            rich_help_panel=TIMING,
        ),
    ] = "0.5%",
    min_time: Annotated[
        float | None,
        typer.Option(
            help="Seconds of timing per batch size, at least. Default: 1, or --max-time.",
            rich_help_panel=TIMING,
        ),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            help="Seconds of timing per batch size, at most, but 8 blocks in any case. "
            "Default: 30 on CUDA, 10 on CPU.",
            rich_help_panel=TIMING,
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_PROCESSES,
            help="Measure all of it N times, each in a fresh process.",
            rich_help_panel=TIMING,
        ),
    ] = 1,
    cold_l2: Annotated[
        bool,
        typer.Option(
            "--cold-l2",
            help="Flush the GPU's L2 cache before each iteration.",
            rich_help_panel=TIMING,
        ),
    ] = False,
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="greedy. sampled, or sampled:SETTINGS of temperature=T, top-k=N, top-p=P and "
            "drafts=greedy. length:2.5, or golden:NAME of published lengths by k: drafts are kept "
            "so that the mean acceptance length is that. synthetic:0.8,0.6,0.4: drafts are kept at "
            "unconditional rates. Default: greedy, and for a preset its family's golden length.",
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos",
            help="Generate to --max-new-tokens, past any EOS.",
            rich_help_panel=WORKLOAD,
        ),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(help="Seed of random weights and random prompts.", rich_help_panel=WORKLOAD),
    ] = 0,
    device: DeviceName = Device.AUTO,
    dtype: DtypeName = Dtype.AUTO,
    kv_dtype: KvDtypeName = KvDtype.AUTO,
    quant: QuantName = QuantMode.AUTO,
    attention: Attention = "auto",
    compile: CompileMode = Compile.OFF,
    tp: Tp = None,
    tp_head: TpHead = HeadPlacement.DIVIDED,
    routing: RoutingOf = None,
    role: Annotated[
        Role,
        typer.Option(
            help="What this deployment serves, for the largest step, run once before capture: "
            "mixed, prefill and decode, or decode alone.",
            rich_help_panel=GRAPHS,
        ),
    ] = Role.MIXED,
    max_num_batched_tokens: MaxBatchedTokens = 8192,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run directory. Default: results/runs/<utc>-<model>.", rich_help_panel=OUTPUT
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the unfinished run in --output.", rich_help_panel=OUTPUT
        ),
    ] = False,
    nvtx: Annotated[
        bool,
        typer.Option(
            "--nvtx",
            help="Mark prefill, captures, replays and eager stages for profilers. A graph is one "
            "range: for the kernels inside use nsys --cuda-graph-trace=node, or scope eager.",
            rich_help_panel=TIMING,
        ),
    ] = False,
    thin: Annotated[
        bool,
        typer.Option(
            "--thin",
            help="Keep what compare needs, 1 MB at most: a baseline to commit.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    save_tokens: Annotated[
        bool,
        typer.Option(
            "--save-tokens", help="Write tokens.jsonl: prompts and outputs.", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the results as JSON instead of a table.", rich_help_panel=OUTPUT
        ),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Print what each floor is made of, stage by stage.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    wide: Annotated[
        bool,
        typer.Option(
            "--wide",
            help="Print every column of the table that has a value.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Measure multi-step speculative decode, eager and in graphs.

    Exit code 0: every cell measured. 1: a cell failed its short audit. 2: bad input. 3: cannot be
    done here, or a cell ran out of memory. 4: a cell was disturbed.
    """
    parameters = locals()
    started = datetime.now(UTC)
    contexts = parse_ints("--context-len", context_len)
    given = {
        "policy": policy_name(policy, capture_sizes),
        "tp": ranks_asked(tp),
        "spec_tokens": parse_grid("--spec-tokens", spec_tokens),
        "batch_sizes": parse_grid("--batch-sizes", batch_sizes),
        "context_len": contexts[0],
    }
    request = asked(RunRequest, parameters | given)
    if thin and save_tokens:
        raise BadInputError("--thin: keeps no tokens. Leave out --save-tokens")
    if resume and output is None:
        raise BadInputError("--resume: needs --output, the run directory to go on with")
    path = output or DEFAULT_OUTPUT / f"{started:%Y%m%dT%H%M%SZ}-{_slug(model)}"
    try:
        if len(contexts) > 1:
            measured = measure_contexts(request, contexts, path, resume=resume)
        else:
            measured = [cgbench.run(request, path, resume=resume, progress=TerminalProgress())]
        # Of the ranks that torchrun started, only the first one shows it.
        whole = [each for each in measured if each.record.complete]
        shown = [show(e, thin=thin, as_json=as_json, explain=explain, wide=wide) for e in whole]
        codes = set().union(*shown)
    except RankFailedError as error:
        raise _with_what_is_kept(error, path) from error
    except KeyboardInterrupt:
        if _is_begun(path):
            say(f"interrupted. {_kept(path)}")
        raise
    raise typer.Exit(foremost(codes))


def _with_what_is_kept(error: RankFailedError, path: Path) -> RankFailedError:
    """Return the error with a word on the finished batch sizes, which outlive the ranks."""
    is_answer = error.exit_code not in (ExitCode.CANNOT, ExitCode.FAULT)
    if is_answer or not (path / "run.json").exists():
        return error
    return RankFailedError(f"{error}. {_kept(path)}", error.exit_code)


def _is_begun(path: Path) -> bool:
    return (path / "run.json").exists() or (path / PARTS).is_dir()


def _kept(path: Path) -> str:
    """Return how the run goes on. Of several contexts or processes each has a run of its own."""
    from cgbench.rundir.store import RunDirectory

    try:
        command = resume_command(RunDirectory.open(path).record.arguments, path)
    except RunDirectoryError:
        return f"Finished batch sizes are kept: the same flags with --output {path} --resume go on"
    return f"Finished batch sizes are kept. This goes on: {command}"


def _slug(model: str) -> str:
    """Return a model reference as part of a folder's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model).name)
