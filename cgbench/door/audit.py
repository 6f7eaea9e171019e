"""``cgbench.audit`` checks whether what is timed also answers right."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.door.prepare import capture_graphs, prepare, use_passive_threads, with_ranks
from cgbench.errors import BadInputError, OutputError
from cgbench.inputs import check_known
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import Ranks
from cgbench.planning import check_batch_size
from cgbench.progress import SILENT, Progress
from cgbench.request.command_line import command_line
from cgbench.request.run_request import AuditRequest

if TYPE_CHECKING:
    from cgbench.checks.catalogue import Check
    from cgbench.checks.finding_facts import FindingFacts
    from cgbench.checks.findings import Finding
    from cgbench.checks.subject import Subject
    from cgbench.measure.audit_setup import AuditResult
    from cgbench.rundir.record import RunRecord

    Result = tuple[Finding, FindingFacts]

# On a GPU this covers every bucket of a usual deployment, and every batch size in it. On a CPU the
# audit then takes seconds.
DEFAULT_MAX_NUM_SEQS = {"cuda": 64, "cpu": 8}


def audit(
    request: AuditRequest,
    *,
    repro: "str | PathLike[str] | None" = None,
    progress: Progress = SILENT,
) -> "AuditResult":
    """Check that graphs, buckets, padding and speculation answer as plain greedy decoding does.

    A wrong answer is a finding of the result, and raises nothing. ``repro`` is a new folder for
    what wrong findings were found on.

    Raise any of ``cgbench.errors``.
    """
    use_passive_threads()
    request, folder = with_ranks(request), None if repro is None else Path(repro)
    num_ranks = request.sharing.num_ranks
    return run_on_ranks(num_ranks, request.device, judge, request, folder, progress)


def judge(
    request: AuditRequest, repro: Path | None, progress: Progress, *, ranks: Ranks
) -> "AuditResult":
    """Audit as one of ``ranks``. The first one alone writes and reports."""
    from cgbench.checks.finding_facts import overall
    from cgbench.checks.subject import make_subject
    from cgbench.measure.audit_setup import AuditResult
    from cgbench.measure.setup import make_record
    from cgbench.rundir.folders import EMPTY_FOLDER, check_new_folder

    progress = progress if ranks.is_first else SILENT
    if repro is not None:
        check_new_folder("--repro", repro, EMPTY_FOLDER)
    chosen = _chosen(request.checks)
    start = time.perf_counter()
    setup = prepare(_with_batch_size(request), progress, ranks)
    for note in setup.notes:
        progress.say(note)
    deployment, _ = capture_graphs(setup.deployment, progress)
    try:
        prompts, max_new_tokens = setup.workload.prompts, setup.options.max_new_tokens
        subject = make_subject(deployment, prompts, max_new_tokens, request.seed)
        results = list(_results(subject, chosen, progress))
    finally:
        deployment.release()
    seconds = time.perf_counter() - start
    record = make_record(request, setup)
    verdict = overall([finding for finding, _ in results])
    # Of several ranks, the first one writes. It has no tensors of what another rank alone found.
    if repro is not None and ranks.is_first:
        _write_repro(repro, results, record, progress)
    return AuditResult(record, verdict, seconds, tuple(facts for _, facts in results))


def _chosen(names: Sequence[str]) -> "list[Check]":
    """Return the checks of these names, or all for no names. Raise ``BadInputError`` for a name
    that no check has.
    """
    from cgbench.checks.catalogue import CHECKS

    check_known("--checks", names, [check.name for check in CHECKS])
    return [check for check in CHECKS if not names or check.name in names]


def _with_batch_size(request: AuditRequest) -> AuditRequest:
    """Return ``request`` with the one batch size that is decoded, which its default leaves to the
    device.

    Raise ``BadInputError`` or ``DeviceError``.
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


def _results(subject: "Subject", checks: "list[Check]", progress: Progress) -> "Iterator[Result]":
    """Yield each check's finding, and the same as plain values, as they come."""
    from cgbench.checks.finding_facts import finding_facts
    from cgbench.checks.findings import over_ranks

    with progress.bar("audit", len(checks)) as bar:
        for check in checks:
            bar.at(check.name)
            start = time.perf_counter()
            finding = over_ranks(check.run(subject))
            yield finding, finding_facts(finding, check.title, time.perf_counter() - start)
            progress.log(f"{check.name}: {finding.answer}")
            bar.advance()


def _write_repro(
    path: Path, results: "list[Result]", record: "RunRecord", progress: Progress
) -> None:
    from cgbench.checks.repro import write_repro
    from cgbench.measure.audit_setup import audited

    found = [(facts, finding.difference) for finding, facts in results if finding.difference]
    if not found:
        return
    try:
        write_repro(path, found, audited(record), command_line("audit", record.arguments))
        progress.say(f"what was wrong is in {path}")
    except OutputError as error:
        # This is printed and not raised, because the findings matter more.
        progress.say(f"error: {error}")
