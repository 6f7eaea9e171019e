"""``cgbench peers`` times this tool's decode beside transformers', in one process on one device."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import cgbench
from cgbench.cli.bench_flags import (
    Attention,
    Chat,
    CompileMode,
    Debug,
    DeviceName,
    DtypeName,
    Model,
    NumPrompts,
    Prompts,
    RoutingOf,
)
from cgbench.cli.console import TerminalProgress, say
from cgbench.cli.engine_flags import (
    EngineArgs,
    EngineEnv,
    EngineNames,
    EnginePython,
    EngineSite,
    FailOnGraphs,
    OneAtATime,
    StartTimeout,
    Steps,
    StepTimeout,
    default_folder,
    engines_code,
    engines_request,
)
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
from cgbench.cli.values import asked, parse_ints
from cgbench.errors import BadInputError, ExitCode
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.request.choices import ChatTemplate, Compile, Device, Dtype
from cgbench.request.peers_request import PeersRequest

if TYPE_CHECKING:
    from cgbench.engines.engine_rows import EnginesTable
    from cgbench.engines.peer_rows import PeerTable, Result


def peers(
    model: Model = "default",
    peers: Annotated[
        str | None,
        typer.Option(
            "--peers",
            help="Only these, of iteration, phase, eager (with -k0 appended: no drafts), dynamic, "
            "static, mtp, batch, verify, verify-static and verify-compiled. Default: all.",
        ),
    ] = None,
    spec_tokens: Annotated[
        str,
        typer.Option(help="Draft tokens k of this tool's rows. With --engine a list, as 0,3."),
    ] = "3",
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size",
            "--batch-sizes",
            help="Requests that decode together. With --engine a list, as 1,8,64.",
        ),
    ] = "1",
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help="Most requests that engines are started for. Default: the largest batch size."
        ),
    ] = None,
    context_len: Annotated[int, typer.Option(help="Tokens of every prompt.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a request decodes in a round.")] = 64,
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
    acceptance: Annotated[
        str | None,
        typer.Option(help="Of this tool's rows with drafts, as `cgbench run` takes it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights and random prompts.")] = 0,
    device: DeviceName = Device.AUTO,
    dtype: DtypeName = Dtype.AUTO,
    attention: Attention = "auto",
    compile: CompileMode = Compile.OFF,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of one prefill forward. Default: 8192, or --context-len."),
    ] = None,
    routing: RoutingOf = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="For the rounds, warm-up not counted. With --engine for those of a batch size."
        ),
    ] = 60,
    rounds: Annotated[int, typer.Option(help="Most rounds a peer takes.")] = 12,
    engine: EngineNames = None,
    engine_arg: EngineArgs = None,
    engine_env: EngineEnv = None,
    engine_python: EnginePython = None,
    engine_site: EngineSite = None,
    steps: Steps = None,
    one_at_a_time: OneAtATime = False,
    start_timeout: StartTimeout = 900,
    step_timeout: StepTimeout = 120,
    fail_on_graphs: FailOnGraphs = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write NAME.md and NAME.json after every round, and go on with those there. With "
            "--engine a new folder. Default then: results/runs/<utc>-peers-<model>."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rounds and their medians as JSON.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Decode the same prompts here and by other engines in turns.

    Exit code 0: measured. 1: with --fail-on-graphs, other graphs than planned. 2: bad input, or an
    engine that is not installed. 3: a peer that is named cannot be measured here, an engine failed,
    or none can be measured. 4: with --engine, a cell was disturbed.
    """
    parameters = locals()
    given = {
        "spec_tokens": parse_ints("--spec-tokens", spec_tokens),
        "batch_sizes": parse_ints("--batch-size", batch_size),
        "max_num_batched_tokens": _token_budget(max_num_batched_tokens, context_len),
    }
    command = shlex.join(["cgbench", *sys.argv[1:]])
    if engine:
        folder = output or default_folder(model)
        table = cgbench.peer_engines(
            engines_request(parameters, given), folder, command=command, progress=TerminalProgress()
        )
        _print_engines(table, folder, as_json=as_json)
        raise typer.Exit(engines_code(table, fail_on_graphs=fail_on_graphs))
    if routing is not None:
        raise BadInputError("--routing: goes with --engine. Without it the router chooses")
    if max_num_seqs is not None:
        given["batch_sizes"] = (max_num_seqs,)
    request = asked(PeersRequest, parameters | given)
    with _saying_what_is_kept(output):
        found = cgbench.peers(request, output, command=command, progress=TerminalProgress())
    _print(found, as_json=as_json)
    raise typer.Exit(exit_code(request, found.rows))


def _print_engines(table: "EnginesTable", folder: Path, *, as_json: bool) -> None:
    from cgbench.tables.engines import engines_markdown

    if as_json:
        typer.echo(json.dumps(table.to_json(), indent=2))
        return
    typer.echo(engines_markdown(table), nl=False)
    say(f"written to {folder}")


def _token_budget(stated: int | None, context_len: int) -> int:
    """Return the most tokens of one forward. By default a whole prompt goes through one, as in the
    other engines.
    """
    return max(DEFAULT_MAX_BATCHED_TOKENS, context_len) if stated is None else stated


@contextmanager
def _saying_what_is_kept(output: Path | None) -> Iterator[None]:
    from cgbench.engines.peer_files import json_file

    try:
        yield
    except KeyboardInterrupt:
        if output is not None and (file := json_file(output)).exists():
            say(f"interrupted. Rounds taken are in {file}. The same command goes on")
        raise


def _print(found: "PeerTable", *, as_json: bool) -> None:
    from cgbench.tables.peers import markdown, row_facts

    if as_json:
        rows = [row_facts(result) for result in found.rows]
        typer.echo(json.dumps({**asdict(found.facts), "peers": rows}, indent=2))
    else:
        typer.echo(markdown(found.facts, found.rows), nl=False)


def exit_code(request: PeersRequest, results: "list[Result]") -> ExitCode:
    """Return the exit code. Each peer that is named must be measured. If none is named, one is
    enough.
    """
    measured = {row.name for row in results if row.rounds and row.reason is None}
    is_good = measured.issuperset(request.peers) if request.peers else bool(measured)
    return ExitCode.OK if is_good else ExitCode.CANNOT
