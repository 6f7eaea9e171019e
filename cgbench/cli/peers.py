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
)
from cgbench.cli.console import TerminalProgress, say
from cgbench.cli.head_flags import (
    ChainNorm,
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
from cgbench.cli.values import asked
from cgbench.errors import ExitCode
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.request.choices import ChatTemplate, Compile, Device, Dtype
from cgbench.request.peers_request import PeersRequest

if TYPE_CHECKING:
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
    spec_tokens: Annotated[int, typer.Option(help="Draft tokens k of this tool's rows.")] = 3,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "--max-num-seqs", help="Requests that decode together.")
    ] = 1,
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
    seconds: Annotated[float, typer.Option(help="For the rounds, warm-up not counted.")] = 60,
    rounds: Annotated[int, typer.Option(help="Most rounds a peer takes.")] = 12,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write NAME.md and NAME.json after every round, and go on with those there."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rounds and their medians as JSON.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Decode the same prompts here and by transformers in turns.

    Exit code 0: measured. 2: bad input. 3: a peer that --peers names cannot be measured here, or
    none can.
    """
    parameters = locals()
    given = {
        "spec_tokens": (spec_tokens,),
        "batch_sizes": (batch_size,),
        "max_num_batched_tokens": _token_budget(max_num_batched_tokens, context_len),
    }
    request = asked(PeersRequest, parameters | given)
    command = shlex.join(["cgbench", *sys.argv[1:]])
    with _saying_what_is_kept(output):
        found = cgbench.peers(request, output, command=command, progress=TerminalProgress())
    _print(found, as_json=as_json)
    raise typer.Exit(exit_code(request, found.rows))


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
