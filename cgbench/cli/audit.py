"""``cgbench audit``: does what is timed also answer right?"""

import json
import time
from collections.abc import Iterator
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
    RoutingOf,
    Scopes,
    SpecTokens,
    Tp,
    TpHead,
    policy_name,
    sharing,
)
from cgbench.cli.choices import ChatTemplate, Compile, Device, Dtype, HeadPlacement, Unit
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
    wiring,
)
from cgbench.cli.prepare import capture_graphs, prepare, use_passive_threads
from cgbench.cli.values import (
    check_known,
    parse_ints,
    parse_names,
    parse_optional_ints,
    parse_scopes,
)
from cgbench.errors import BadInputError, ExitCode, OutputError
from cgbench.parallel.launch import ranks_asked, run_on_ranks
from cgbench.planning import MAX_BATCH_SIZE, check_batch_size

if TYPE_CHECKING:
    from cgbench.checks.catalogue import Check
    from cgbench.checks.findings import Finding
    from cgbench.checks.subject import Subject

    Result = tuple[Finding, dict[str, Any]]

# What an audit decodes with where ``run`` asks: answers are judged, so nothing is left to chance.
FIXED = {
    "acceptance": "greedy",
    "ignore_eos": False,
    "iterations": None,
    "precision": None,
    "min_time": None,
    "max_time": None,
    "cold_l2": False,
    "role": "decode",
    "save_tokens": False,
}

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
    capture_unit: CaptureUnit = Unit.REQUESTS,
    head: HeadRef = None,
    head_family: HeadFamilyName = None,
    head_concat: HeadConcat = None,
    head_hidden: HeadHidden = None,
    chain_norm: ChainNorm = None,
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
    compile_mode: CompileMode = Compile.OFF,
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
    num_ranks = ranks_asked(tp)
    arguments: dict[str, Any] = {
        "model": model,
        "spec_tokens": [*parse_ints("--spec-tokens", spec_tokens)],
        "max_num_seqs": max_num_seqs,
        "scopes": [*parse_scopes(scopes)],
        "policy": policy_name(policy, capture_sizes),
        "capture_sizes": parse_optional_ints("--capture-sizes", capture_sizes),
        "capture_unit": capture_unit.value,
        "head": head,
        **wiring(
            head_family,
            head_concat,
            head_hidden,
            chain_norm,
            head_out_norm,
            head_norm_form,
            head_first_embed,
        ),
        "prompts": prompts,
        "num_prompts": num_prompts,
        "chat_template": chat_template.value,
        "max_new_tokens": max_new_tokens,
        "context_len": context_len,
        "seed": seed,
        "device": device.value,
        "dtype": dtype.value,
        "attention": attention,
        "compile": compile_mode.value,
        **sharing(num_ranks, tp_head),
        "routing": None if routing is None else routing.value,
        "max_num_batched_tokens": max_num_batched_tokens,
        "checks": parse_names(checks),
    }
    use_passive_threads()
    answer, facts = run_on_ranks(num_ranks, device.value, execute, arguments, repro=repro)
    _print(answer, facts, as_json=as_json)
    raise typer.Exit(EXIT_CODES[answer["verdict"]])


def execute(
    arguments: dict[str, Any], *, repro: Path | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The main job, on every rank: what the audit was of, with its verdict, and the findings."""
    from cgbench.checks.finding_facts import overall
    from cgbench.checks.subject import make_subject
    from cgbench.measure.audit_setup import audit_record
    from cgbench.parallel.ranks import is_first
    from cgbench.rundir.folders import check_new_folder

    if repro is not None:
        check_new_folder("--repro", repro, "choose a new or an empty folder")
    chosen = _chosen(arguments["checks"])
    start = time.perf_counter()
    setup = prepare(_with_batch_size(arguments))
    for note in setup.notes:
        say(note)
    deployment, _ = capture_graphs(setup.deployment)
    try:
        prompts, max_new_tokens = setup.workload.prompts, setup.options.max_new_tokens
        subject = make_subject(deployment, prompts, max_new_tokens, arguments["seed"])
        results = list(_results(subject, chosen))
    finally:
        deployment.release()
    seconds = time.perf_counter() - start
    record = audit_record(arguments, setup)
    verdict = overall([finding for finding, _ in results])
    # Of several ranks the first one's, which has no tensors of what another rank alone found.
    if repro is not None and is_first():
        _write_repro(repro, results, record)
    return {**record, "verdict": verdict, "seconds": seconds}, [facts for _, facts in results]


def _chosen(names: list[str]) -> "list[Check]":
    """Raises ``BadInputError`` for a name that no check has."""
    from cgbench.checks.catalogue import CHECKS

    check_known("--checks", names, [check.name for check in CHECKS])
    return [check for check in CHECKS if not names or check.name in names]


def _with_batch_size(arguments: dict[str, Any]) -> dict[str, Any]:
    """``arguments`` with what a run is told and an audit decides itself.

    Raises ``BadInputError`` or ``DeviceError``.
    """
    from cgbench.measure.setup import choose_device

    most = arguments["max_num_seqs"]
    if most is None:
        most = DEFAULT_MAX_NUM_SEQS[choose_device(arguments["device"]).type]
    check_batch_size("--max-num-seqs", most)
    if (count := arguments["max_new_tokens"]) < 2:
        raise BadInputError(
            f"--max-new-tokens {count}: must be at least 2, for the first token is the prefill's"
        )
    return {**arguments, **FIXED, "max_num_seqs": most, "batch_sizes": [most]}


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
            say_when_piped(f"{check.name}: {finding.verdict}")
            bar.advance(task)


def _print(answer: dict[str, Any], facts: list[dict[str, Any]], *, as_json: bool) -> None:
    from cgbench.tables.audit import checklist, summary

    if as_json:
        typer.echo(json.dumps({**answer, "findings": facts}, indent=2))
        return
    model = answer["model"]
    console().print(checklist(facts, _title(model)))
    console().print(summary(facts, answer["seconds"]))


def _title(model: dict[str, Any]) -> str:
    """What was audited, as every table names it."""
    return f"{model['label']}, head {model['head']}, routing {model['routing']}"


def _write_repro(path: Path, results: "list[Result]", record: dict[str, Any]) -> None:
    from cgbench.checks.repro import write_repro
    from cgbench.request.command_line import command_line

    found = [(facts, finding.difference) for finding, facts in results if finding.difference]
    if not found:
        return
    try:
        write_repro(path, found, record, command_line("audit", record["arguments"]))
        say(f"what was wrong is in {path}")
    except OutputError as error:
        # Said, not raised: the audit has something worse to tell.
        print_error(str(error))
