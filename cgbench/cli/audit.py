"""``cgbench audit``: does what is timed also answer right?"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from cgbench.cli.console import console, print_error, progress, say, say_when_piped
from cgbench.cli.head_flags import (
    ChainNorm,
    HeadConcat,
    HeadFamilyName,
    HeadFirstEmbed,
    HeadHidden,
    HeadNormForm,
    HeadOutNorm,
    HeadRef,
)
from cgbench.cli.prepare import capture_graphs, prepare, use_passive_threads
from cgbench.cli.values import asked, check_known
from cgbench.errors import BadInputError, ExitCode, OutputError
from cgbench.parallel.launch import ranks_asked, run_on_ranks
from cgbench.parallel.ranks import Ranks
from cgbench.planning import MAX_BATCH_SIZE, CaptureUnit, check_batch_size
from cgbench.request.choices import ChatTemplate, Compile, Device, Dtype, HeadPlacement
from cgbench.request.run_request import AuditRequest

if TYPE_CHECKING:
    from cgbench.checks.catalogue import Check
    from cgbench.checks.finding_facts import FindingFacts
    from cgbench.checks.findings import Finding
    from cgbench.checks.subject import Subject
    from cgbench.measure.audit_setup import AuditResult
    from cgbench.rundir.record import RunRecord

    Result = tuple[Finding, FindingFacts]

# On a GPU every bucket of a usual deployment, and every batch size in it; on a CPU, seconds.
DEFAULT_MAX_NUM_SEQS = {"cuda": 64, "cpu": 8}

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
            help=f"Most requests at once, up to {MAX_BATCH_SIZE:,}. Default: 64 on CUDA, 8 on CPU."
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
    prompts: Prompts = None,
    num_prompts: NumPrompts = None,
    chat_template: Chat = ChatTemplate.AUTO,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens generated per request.")] = 16,
    context_len: Annotated[int, typer.Option(help="Tokens of a prompt of --prompts random.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of prompts, poison and random weights.")] = 0,
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
            "limits. Default: all."
        ),
    ] = None,
    repro: Annotated[
        Path | None, typer.Option(help="New folder for what wrong findings were found on.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON instead of a table.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check that graphs, buckets, padding and speculation answer as plain greedy decoding does.

    Exit code 0: all checks hold that could be made; 1: something is wrong; 2: bad input; 3: cannot
    be done here, or no check could be made.
    """
    parameters = locals()
    given = {"policy": policy_name(policy, capture_sizes), "tp": ranks_asked(tp)}
    request = asked(AuditRequest, parameters | given)
    use_passive_threads()
    result = run_on_ranks(request.sharing.num_ranks, device, execute, request, repro=repro)
    _print(result, as_json=as_json)
    raise typer.Exit(EXIT_CODES[result.verdict])


def execute(request: AuditRequest, *, repro: Path | None, ranks: Ranks) -> "AuditResult":
    """The main job, on every rank."""
    from cgbench.checks.finding_facts import overall
    from cgbench.checks.subject import make_subject
    from cgbench.measure.audit_setup import AuditResult
    from cgbench.measure.setup import make_record
    from cgbench.rundir.folders import check_new_folder

    if repro is not None:
        check_new_folder("--repro", repro, "choose a new or an empty folder")
    chosen = _chosen(request.checks)
    start = time.perf_counter()
    setup = prepare(_with_batch_size(request), ranks)
    for note in setup.notes:
        say(note)
    deployment, _ = capture_graphs(setup.deployment)
    try:
        prompts, max_new_tokens = setup.workload.prompts, setup.options.max_new_tokens
        subject = make_subject(deployment, prompts, max_new_tokens, request.seed)
        results = list(_results(subject, chosen))
    finally:
        deployment.release()
    seconds = time.perf_counter() - start
    record = make_record(request, setup)
    verdict = overall([finding for finding, _ in results])
    # Of several ranks the first one's, which has no tensors of what another rank alone found.
    if repro is not None and ranks.is_first:
        _write_repro(repro, results, record)
    return AuditResult(record, verdict, seconds, tuple(facts for _, facts in results))


def _chosen(names: Sequence[str]) -> "list[Check]":
    """Raises ``BadInputError`` for a name that no check has."""
    from cgbench.checks.catalogue import CHECKS

    check_known("--checks", names, [check.name for check in CHECKS])
    return [check for check in CHECKS if not names or check.name in names]


def _with_batch_size(request: AuditRequest) -> AuditRequest:
    """``request`` with the one batch size that is decoded, which its default leaves to the device.

    Raises ``BadInputError`` or ``DeviceError``.
    """
    from cgbench.measure.setup import choose_device

    most = request.capture.max_num_seqs
    if most is None:
        most = DEFAULT_MAX_NUM_SEQS[choose_device(request.device).type]
    check_batch_size("--max-num-seqs", most)
    if (count := request.workload.max_new_tokens) < 2:
        raise BadInputError(
            f"--max-new-tokens {count}: must be at least 2, for the first token is the prefill's"
        )
    capture = replace(request.capture, max_num_seqs=most)
    return replace(
        request, capture=capture, workload=replace(request.workload, batch_sizes=(most,))
    )


def _results(subject: "Subject", checks: "list[Check]") -> "Iterator[Result]":
    """Each check's finding, and the same as plain values, as they come."""
    from cgbench.checks.finding_facts import finding_facts
    from cgbench.checks.findings import over_ranks

    with progress() as bar:
        task = bar.add_task("audit", total=len(checks))
        for check in checks:
            bar.update(task, description=check.name)
            start = time.perf_counter()
            finding = over_ranks(check.run(subject))
            yield finding, finding_facts(finding, check.title, time.perf_counter() - start)
            say_when_piped(f"{check.name}: {finding.answer}")
            bar.advance(task)


def _print(result: "AuditResult", *, as_json: bool) -> None:
    from cgbench.tables.audit import checklist, summary

    if as_json:
        typer.echo(result.to_json())
        return
    console().print(checklist(result.findings, result.title))
    console().print(summary(result.findings, result.seconds))


def _write_repro(path: Path, results: "list[Result]", record: "RunRecord") -> None:
    from cgbench.checks.repro import write_repro
    from cgbench.measure.audit_setup import audited
    from cgbench.request.command_line import command_line

    found = [(facts, finding.difference) for finding, facts in results if finding.difference]
    if not found:
        return
    try:
        write_repro(path, found, audited(record), command_line("audit", record.arguments))
        say(f"what was wrong is in {path}")
    except OutputError as error:
        # Said, not raised: the audit has something worse to tell.
        print_error(str(error))
