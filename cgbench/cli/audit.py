"""``cgbench audit`` checks whether what is timed also answers right."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

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
    Tp,
    TpHead,
    Unit,
    policy_name,
)
from cgbench.cli.console import TerminalProgress, console
from cgbench.cli.endpoint_flags import (
    Against,
    ApiKeyEnv,
    Edges,
    Endpoint,
    Engine,
    Exact,
    LaunchLine,
    MaxRequests,
    MaxSeconds,
    Repeats,
    Timeout,
    check_beside,
    endpoint_request,
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
from cgbench.cli.panels import GRAPHS, OUTPUT, WORKLOAD
from cgbench.cli.values import asked
from cgbench.errors import ExitCode
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
)
from cgbench.request.run_request import AuditRequest

if TYPE_CHECKING:
    from cgbench.measure.audit_setup import AuditResult

DEFAULT_SPEC_TOKENS = "3"
DEFAULT_NEW_TOKENS = 16

EXIT_CODES = {
    "holds": ExitCode.OK,
    "wrong": ExitCode.ANSWER_IS_NO,
    "not run": ExitCode.CANNOT,
}


def audit(
    model: Model = "default",
    spec_tokens: Annotated[
        str | None,
        typer.Option(
            help="Draft tokens k an iteration, 0 to 16, such as 1,3. 0 always runs too. Default: "
            "3. With --endpoint the server's k.",
            rich_help_panel=GRAPHS,
        ),
    ] = None,
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
    draft_vocab: DraftVocab = None,
    draft_vocab_from: DraftVocabFrom = None,
    prompts: Prompts = None,
    num_prompts: NumPrompts = None,
    chat_template: Chat = ChatTemplate.AUTO,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens generated per request. Default: 16, with --endpoint 64.",
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    context_len: Annotated[
        int, typer.Option(help="Tokens of a prompt of --prompts random.", rich_help_panel=WORKLOAD)
    ] = 64,
    seed: Annotated[
        int,
        typer.Option(help="Seed of prompts, poison and random weights.", rich_help_panel=WORKLOAD),
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
    max_num_batched_tokens: MaxBatchedTokens = 8192,
    checks: Annotated[
        str | None,
        typer.Option(
            help="Only these, of equality, hidden, drafts, parity, padding, isolation, hygiene and "
            "limits. With --endpoint of tokens and acceptance. Default: all.",
            rich_help_panel=WORKLOAD,
        ),
    ] = None,
    endpoint: Endpoint = None,
    against: Against = None,
    engine: Engine = None,
    launch_line: LaunchLine = None,
    edges: Edges = None,
    repeats: Repeats = 2,
    max_requests: MaxRequests = 8192,
    max_seconds: MaxSeconds = 600,
    timeout: Timeout = 60,
    exact: Exact = False,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
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
    be done here, or no check could be made. 4: with --endpoint, an edge could not be judged.
    """
    parameters = locals()
    check_beside(audit, parameters)
    if endpoint is not None:
        _audit_endpoint(parameters, repro, as_json=as_json)
    given = {
        "policy": policy_name(policy, capture_sizes),
        "tp": ranks_asked(tp),
        "spec_tokens": DEFAULT_SPEC_TOKENS if spec_tokens is None else spec_tokens,
        "max_new_tokens": DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens,
    }
    request = asked(AuditRequest, parameters | given)
    result = cgbench.audit(request, repro=repro, progress=TerminalProgress())
    _print(result, as_json=as_json)
    raise typer.Exit(EXIT_CODES[result.verdict])


def _audit_endpoint(
    parameters: Mapping[str, object], repro: Path | None, *, as_json: bool
) -> NoReturn:
    """A server in place of a model: nothing is loaded here, so torch is not imported."""
    from cgbench.tables.endpoint import edge_table, endpoint_summary

    request = endpoint_request(parameters)
    result = cgbench.audit_endpoint(request, repro=repro, progress=TerminalProgress())
    if as_json:
        typer.echo(result.to_json())
    else:
        console().print(edge_table(result))
        console().print(endpoint_summary(result), soft_wrap=True)
    raise typer.Exit(result.exit_code)


def _print(result: "AuditResult", *, as_json: bool) -> None:
    from cgbench.tables.audit import checklist, summary

    if as_json:
        typer.echo(result.to_json())
        return
    console().print(checklist(result.findings, result.title))
    console().print(summary(result.findings, result.seconds))
