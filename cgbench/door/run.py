"""``cgbench.run`` loads, captures and measures on every rank, and writes the run directory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.door.prepare import capture_graphs, prepare, use_passive_threads, with_ranks
from cgbench.door.processes import measure_in_processes
from cgbench.errors import BadInputError
from cgbench.measure.run_clock import Clock
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import Ranks, agreed, barrier
from cgbench.progress import SILENT, Progress
from cgbench.request.run_request import RunRequest
from cgbench.words import Quant

if TYPE_CHECKING:
    from cgbench.door.run_writer import RunWriter
    from cgbench.measure.session import Session
    from cgbench.measure.setup import Setup
    from cgbench.rundir.record import RunRecord
    from cgbench.rundir.store import RunDirectory


def run(
    request: RunRequest,
    output: "str | PathLike[str]",
    *,
    resume: bool = False,
    progress: Progress = SILENT,
) -> "RunDirectory":
    """Measure what ``request`` asks for, write it to the folder ``output``, and return it.

    Each batch size is on disk before the next one begins, so ``resume`` goes on with a run that was
    stopped. A cell that failed is a row with its status, and raises nothing. Under torchrun the
    first rank returns the run. The others return one without rows that is not ``complete``.

    Raise any of ``cgbench.errors``.
    """
    use_passive_threads()
    request, path = with_ranks(request), Path(output)
    num_ranks, processes = request.sharing.num_ranks, request.timing.processes
    if processes > 1 and num_ranks > 1:
        raise BadInputError(f"--processes {processes}: not with --tp {num_ranks}. Drop one")
    if processes > 1:
        return measure_in_processes(request, path, progress, resume=resume)
    device = request.device
    return run_on_ranks(num_ranks, device, measure, request, path, progress, resume=resume)


def measure(
    request: RunRequest, path: Path, progress: Progress, *, resume: bool, ranks: Ranks
) -> "RunDirectory":
    """Measure as one of ``ranks``. The first one alone writes and reports."""
    # The clock begins before torch is loaded.
    clock = Clock()
    from cgbench.measure.group import measure_group, num_steps
    from cgbench.measure.setup import make_record
    from cgbench.rundir.store import RunDirectory, sole_writer

    progress = progress if ranks.is_first else SILENT
    writer = None
    with ExitStack() as held:
        if ranks.is_first:
            RunDirectory.check(path, resume=resume)
            if resume:
                held.enter_context(sole_writer(path))
        setup = prepare(request, progress, ranks)
        record = make_record(request, setup)
        if ranks.is_first:
            writer = _writer(request, path, record, progress, resume=resume)
            if not resume:
                held.enter_context(sole_writer(path))
        for note in setup.notes:
            progress.say(note)
        session = held.enter_context(_session(setup, clock, writer, progress))
        for title, batch_size in _unfinished(session, writer):
            with progress.bar(title, num_steps(session, batch_size)) as bar:
                group = measure_group(session, batch_size, bar.advance)
                if writer:
                    writer.group(batch_size, group, clock)
                # What follows may end a rank. So none goes on before this batch size is on disk.
                barrier(f"what follows batch size {batch_size}")
        if writer:
            writer.finish()
    return RunDirectory.open(path) if writer else RunDirectory(path, record)


def _writer(
    request: RunRequest, path: Path, record: "RunRecord", progress: Progress, *, resume: bool
) -> "RunWriter":
    from cgbench.door.run_writer import RunWriter
    from cgbench.rundir.store import RunDirectory

    begin = RunDirectory.resume if resume else RunDirectory.create
    return RunWriter(begin(path, record), progress, request.save_tokens)


@contextmanager
def _session(
    setup: "Setup", clock: Clock, writer: "RunWriter | None", progress: Progress
) -> "Iterator[Session]":
    """Measure the device, capture the graphs, and hold them until the session is over."""
    from cgbench.floor.device_limits import device_limits
    from cgbench.floor.least_time import floor_of
    from cgbench.floor.telemetry import Watch, open_telemetry
    from cgbench.measure.session import Session

    deployment = setup.deployment
    # This comes before the graphs take their memory, and while nothing else runs.
    with progress.working("measure read bandwidth and matrix rate"):
        dtype, is_w8a8 = deployment.spec.target.dtype, deployment.model.quant is Quant.W8A8
        limits = device_limits(deployment.device, dtype, with_fp8=is_w8a8)
    if writer:
        writer.directory.record.set_limits(limits)
    floor = floor_of(deployment.model, limits)
    deployment, largest = capture_graphs(deployment, progress)
    try:
        if writer and largest:
            writer.capture(deployment, largest)
        with open_telemetry(deployment.device) as telemetry:
            watch = Watch(telemetry)
            yield Session(deployment, setup.options, setup.workload, watch, floor, clock)
    finally:
        deployment.release()


def _unfinished(session: "Session", writer: "RunWriter | None") -> list[tuple[str, int]]:
    """Return the batch sizes that are not on disk, each with the title of its bar."""
    finished = agreed(writer.directory.finished_batch_sizes if writer else set())
    sizes = session.options.batch_sizes
    return [
        (f"batch size {size}, {number} of {len(sizes)}", size)
        for number, size in enumerate(sizes, 1)
        if size not in finished
    ]
