"""``cgbench audit`` checks whether what is timed also answers right."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    MaxBatchedTokens,
    Model,
    NumPrompts,
    Policy,
    Prompts,
    RoutingOf,
    Scopes,
    SpecTokens,
    Tp,
    TpHead,
    Unit,
    policy_name,
)
from cgbench.cli.console import TerminalProgress, console
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
from cgbench.cli.panels import GRAPHS, OUTPUT, WORKLOAD
from cgbench.cli.values import asked
from cgbench.errors import ExitCode
from cgbench.parallel.launch import ranks_asked
from cgbench.planning import MAX_BATCH_SIZE, CaptureUnit
from cgbench.request.choices import ChatTemplate, Compile, Device, Dtype, HeadPlacement
from cgbench.request.run_request import AuditRequest

if TYPE_CHECKING:
    from cgbench.measure.audit_setup import AuditResult

EXIT_CODES = {
    "holds": ExitCode.OK,
    "wrong": ExitCode.ANSWER_IS_NO,
    "not run": ExitCode.CANNOT,
}


def audit(
    model: Model = "default",
    spec_tokens: SpecTokens = "3",
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help=f"Most requests at once, up to {MAX_BATCH_SIZE:,}. Default: 64 on CUDA, 8 on CPU.",
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
    prompts: Prompts = None,
    num_prompts: NumPrompts = None,
    chat_template: Chat = ChatTemplate.AUTO,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens generated per request.", rich_help_panel=WORKLOAD)
    ] = 16,
    context_len: Annotated[
        int, typer.Option(help="Tokens of a prompt of --prompts random.", rich_help_panel=WORKLOAD)
    ] = 64,
    seed: Annotated[
        int,
        typer.Option(help="Seed of prompts, poison and random weights.", rich_help_panel=WORKLOAD),
    ] = 0,
    device: DeviceName = Device.AUTO,
    dtype: DtypeName = Dtype.AUTO,
    attention: Attention = "auto",
    compile: CompileMode = Compile.OFF,
    tp: Tp = None,
    tp_head: TpHead = HeadPlacement.DIVIDED,
    routing: RoutingOf = None,
    max_num_batched_tokens: MaxBatchedTokens = 8192,
    checks: Annotated[
        str | None,
        typer.Option(
            help="Only these, of equality, hidden, drafts, parity, padding, isolation, hygiene and "
            "limits. Default: all.",
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    repro: Annotated[
        Path | None,
        typer.Option(
            help="New folder for what wrong findings were found on.", rich_help_panel=OUTPUT
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the findings as JSON instead of a table.", rich_help_panel=OUTPUT
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Check that what is captured answers as plain greedy decoding does.

    Exit code 0: all checks hold that could be made. 1: something is wrong. 2: bad input. 3: cannot
    be done here, or no check could be made.
    """
    parameters = locals()
    given = {"policy": policy_name(policy, capture_sizes), "tp": ranks_asked(tp)}
    request = asked(AuditRequest, parameters | given)
    result = cgbench.audit(request, repro=repro, progress=TerminalProgress())
    _print(result, as_json=as_json)
    raise typer.Exit(EXIT_CODES[result.verdict])


def _print(result: "AuditResult", *, as_json: bool) -> None:
    from cgbench.tables.audit import checklist, summary

    if as_json:
        typer.echo(result.to_json())
        return
    console().print(checklist(result.findings, result.title))
    console().print(summary(result.findings, result.seconds))
