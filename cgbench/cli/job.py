"""The main job of ``cgbench run``: measure on every rank, write on the first, and print."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cgbench.cli.console import (
    console,
    print_error,
    print_uncut,
    progress,
    say,
    say_when_piped,
    working,
)
from cgbench.cli.prepare import capture_graphs, prepare
from cgbench.cli.processes import measure_in_processes
from cgbench.errors import CannotError, ExitCode, OutputError
from cgbench.parallel.ranks import Ranks, agreed, barrier
from cgbench.request.run_request import RunRequest
from cgbench.words import Status

if TYPE_CHECKING:
    from cgbench.engine.deployment import Deployment, DummyRun
    from cgbench.floor.rates import DeviceLimits
    from cgbench.measure.group import Group
    from cgbench.measure.session import Session
    from cgbench.rundir.schema import Sample
    from cgbench.rundir.store import RunDirectory


EXIT_CODES = {
    Status.OK: ExitCode.OK,
    Status.AUDIT_FAILED: ExitCode.ANSWER_IS_NO,
    Status.OOM: ExitCode.CANNOT,
    Status.DISTURBED: ExitCode.INCONCLUSIVE,
    Status.FLOOR_BEATEN: ExitCode.ANSWER_IS_NO,
}


def execute(request: RunRequest, path: Path, *, resume: bool, ranks: Ranks) -> bool:
    """Measure, on every rank; whether it is this one that wrote the run, for ``show`` to print."""
    if request.timing.processes > 1:
        return measure_in_processes(request, path, resume=resume) is not None
    return measure(request, path, ranks, resume=resume) is not None


def show(path: Path, *, thin: bool, as_json: bool, explain: bool) -> set[ExitCode]:
    """Print a finished run; every cell's exit code. No rank waits for who reads it."""
    from cgbench.rundir.store import RunDirectory

    directory = RunDirectory.open(path)
    print_run(directory, as_json=as_json, explain=explain)
    if not as_json:
        say(f"written to {directory.path}")
    frame = directory.latency()
    codes = {EXIT_CODES[Status(status)] for status in frame["status"]}
    if thin:
        codes.add(_make_thin(directory))
    return codes


def print_run(directory: "RunDirectory", *, as_json: bool, explain: bool) -> None:
    """The tables of a run, its largest losses, and on a terminal its rates as bars."""
    from cgbench.advice.slow_reasons import reason_lines
    from cgbench.tables.latency import latency_table, to_json
    from cgbench.tables.rate_bars import rate_bars

    frame, record = directory.latency(), directory.record
    if as_json:
        typer.echo(to_json(frame, record, directory.path))
        return
    print_uncut(latency_table(frame, record.model["label"], console().width))
    if explain:
        _explain(directory)
    bars = rate_bars(frame) if console().is_terminal else None
    if bars is not None:
        console().print(bars)
    for line in reason_lines(directory):
        typer.echo(line)


def _make_thin(directory: "RunDirectory") -> ExitCode:
    from cgbench.rundir.thin import make_thin

    try:
        num_bytes = make_thin(directory)
    except CannotError as error:
        # Said, not raised: a cell may have something worse to tell.
        print_error(str(error))
        return error.exit_code
    say(f"kept as a thin baseline: {num_bytes} bytes")
    return ExitCode.OK


def _explain(directory: "RunDirectory") -> None:
    from cgbench.tables.floor import account_tables

    for table in account_tables(directory.record, directory.samples(), console().width):
        print_uncut(table)


def measure(
    request: RunRequest, path: Path, ranks: Ranks, *, resume: bool
) -> "RunDirectory | None":
    """Load, capture and measure, on every rank; the first one writes, alone, and returns the
    finished run."""
    with ExitStack() as held:
        return _measured(request, path, ranks, held, resume=resume)


def _measured(
    request: RunRequest, path: Path, ranks: Ranks, held: ExitStack, *, resume: bool
) -> "RunDirectory | None":
    from cgbench.measure.run_clock import Clock

    clock = Clock()
    from cgbench.floor.least_time import floor_of
    from cgbench.floor.telemetry import Watch, open_telemetry
    from cgbench.measure.session import Session
    from cgbench.measure.setup import make_record
    from cgbench.rundir.store import RunDirectory, sole_writer
    from cgbench.tables.latency import latency_markdown

    if ranks.is_first:
        RunDirectory.check(path, resume=resume)
        if resume:
            held.enter_context(sole_writer(path))
    setup = prepare(request, ranks)
    record = make_record(request, setup)
    directory = None
    if ranks.is_first:
        directory = (RunDirectory.resume if resume else RunDirectory.create)(path, record)
        if not resume:
            held.enter_context(sole_writer(path))
    for note in setup.notes:
        say(note)
    floor = floor_of(setup.deployment.model, _measure_limits(setup.deployment, directory))
    deployment, largest = capture_graphs(setup.deployment)
    try:
        _keep_capture(deployment, largest, directory)
        with open_telemetry(deployment.device) as telemetry:
            watch = Watch(telemetry)
            session = Session(deployment, setup.options, setup.workload, watch, floor, clock)
            _measure(session, directory, save_tokens=request.save_tokens)
    finally:
        deployment.release()
    if directory is not None:
        with _writing(directory):
            directory.finish(latency_markdown)
    return directory


@contextmanager
def _writing(directory: "RunDirectory") -> Iterator[None]:
    """Raises ``OutputError`` where the disk is full or gone, which loses no finished group."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{directory.path} cannot be written: {error.strerror or error}; finished batch sizes "
            "are kept, --resume goes on"
        ) from error


def _measure_limits(deployment: "Deployment", directory: "RunDirectory | None") -> "DeviceLimits":
    """Before the graphs take their memory, and while nothing else runs."""
    from cgbench.floor.device_limits import device_limits

    with working("measure read bandwidth and matrix rate"):
        limits = device_limits(deployment.device, deployment.spec.target.dtype)
    if directory is not None:
        directory.record.set_limits(limits)
    return limits


def _keep_capture(
    deployment: "Deployment", largest: "DummyRun | None", directory: "RunDirectory | None"
) -> None:
    if largest is None or directory is None:
        return
    directory.record.add_capture(asdict(largest))
    with _writing(directory):
        directory.write_capture([c for gs in deployment.graph_sets.values() for c in gs.costs])


def _measure(session: "Session", directory: "RunDirectory | None", *, save_tokens: bool) -> None:
    from cgbench.measure.group import measure_group, num_steps

    finished = agreed(set() if directory is None else directory.finished_batch_sizes)
    todo = [n for n in session.options.batch_sizes if n not in finished]
    with progress() as bar:
        for batch_size in todo:
            task = bar.add_task(f"batch size {batch_size}", total=num_steps(session, batch_size))
            group = measure_group(session, batch_size, partial(bar.advance, task))
            if directory is not None:
                clock = session.clock
                directory.record.set_seconds(run=clock.run_s, audit=clock.audit_s)
                _keep(group, batch_size, directory, save_tokens=save_tokens)
            # No rank goes on to what may end it before this batch size is on disk.
            barrier(f"what follows batch size {batch_size}")


def _keep(group: "Group", batch_size: int, directory: "RunDirectory", *, save_tokens: bool) -> None:
    """Write one batch size, and tell what is to be told of it."""
    from cgbench.rundir.floor_verdict import floor_lines

    directory.record.keep_accounts(batch_size, group.accounts)
    _report_collectives(group.samples, directory)
    _report([*map(_failed, group.failures), *group.doubts], directory)
    tokens = group.tokens if save_tokens else ()
    with _writing(directory):
        written = directory.write_group(group.cells, group.samples, tokens, group.blocks)
    _report([*floor_lines(written, directory.record)], directory)
    say_when_piped(f"measured batch size {batch_size}")


def _report_collectives(samples: "list[Sample]", directory: "RunDirectory") -> None:
    """What the ranks' collectives take of each cell's iteration: told, and kept in the record."""
    from cgbench.rundir.collective_share import collective_shares

    shares = [*collective_shares(samples)]
    directory.record.add_collectives(shares)
    for share in shares:
        say(share.text)


def _failed(failure: str) -> str:
    return f"audit failed: {failure}; `cgbench audit` with the same flags says more"


def _report(lines: list[str], directory: "RunDirectory") -> None:
    """What is wrong with a group is told at once, and kept in the record."""
    directory.record.add_warnings(lines)
    for line in lines:
        say(line)
