"""``--processes N`` measures in N fresh processes, one after another, and makes one run of them.

Each is an ordinary run in a directory of its own below ``--output``. So a kill or a failure loses
none that is finished, and ``--resume`` goes on in the middle of one. This process loads no model.
"""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cgbench.door.relay import replay
from cgbench.errors import ExitCode, ProcessError, RunDirectoryError
from cgbench.progress import Progress
from cgbench.request.run_request import RunRequest

if TYPE_CHECKING:
    from cgbench.rundir.record_parts import Resumed
    from cgbench.rundir.store import RunDirectory

PARTS = "processes"


def measure_in_processes(
    request: RunRequest, path: Path, progress: Progress, *, resume: bool
) -> "RunDirectory":
    """Run the processes that are missing, merge all of them, and return the finished run.

    Raise ``RunDirectoryError`` as ``run`` does, and ``ProcessError`` if a process ends badly.
    """
    from cgbench.rundir.merge import merge_runs
    from cgbench.rundir.store import RunDirectory
    from cgbench.tables.latency import latency_markdown

    _check(path, resume=resume)
    count = request.timing.processes
    alone = replace(request, timing=replace(request.timing, processes=1))
    parts = [path / PARTS / str(number) for number in range(count)]
    kept = [n for n, part in enumerate(parts) if is_finished(part, alone)]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for number, part in enumerate(parts):
        if number in kept:
            continue
        name = f"process {number + 1} of {count}"
        progress.say(name)
        run_apart(alone, part, f"--processes: {name}", progress)
    opened = [RunDirectory.open(part) for part in parts]
    gone_on: list[Resumed] = [{"utc": now, "kept_processes": kept}] if resume else []
    merge_runs(opened, path, latency_markdown, resumed=gone_on)
    shutil.rmtree(path / PARTS)
    return RunDirectory.open(path)


def _check(path: Path, *, resume: bool) -> None:
    from cgbench.rundir.store import RunDirectory

    if not resume or (path / "run.json").exists():
        RunDirectory.check(path, resume=resume)
    elif not (path / PARTS).is_dir():
        raise RunDirectoryError(f"--resume: {path / PARTS}: missing. Nothing was begun there")


def is_finished(part: Path, request: RunRequest) -> bool:
    """Return whether ``part`` is a complete run. A part without a record holds nothing yet, so it
    is removed.

    Raise ``RunDirectoryError`` if it was begun with another request.
    """
    from cgbench.rundir.differences import differing_flags
    from cgbench.rundir.store import RunDirectory

    if not (part / "run.json").exists():
        shutil.rmtree(part, ignore_errors=True)
        return False
    record, file = RunDirectory.open(part).record, part / "run.json"
    begun = RunRequest.from_record(record.arguments, f"{file}: arguments")
    if flags := differing_flags(begun.to_record(), request.to_record()):
        raise RunDirectoryError(
            f"--resume: {file} was begun with another {', '.join(flags)}. "
            "Give the same, or choose another --output"
        )
    return record.complete


def run_apart(request: RunRequest, part: Path, name: str, progress: Progress) -> None:
    """Begin a run in a fresh process, or go on with it.

    Raise ``ProcessError``, beginning with ``name``, if it ends badly.
    """
    job = {"request": request.to_record(), "path": str(part), "resume": part.exists()}
    with subprocess.Popen(
        [sys.executable, "-m", "cgbench.door.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        try:
            _hand_over(job, process.stdin)
            reason = replay(process.stdout, progress)
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return
    kept = "Here --resume keeps what is measured and goes on"
    is_known = reason and process.returncode in {*map(int, ExitCode)}
    code = ExitCode(process.returncode) if is_known else ExitCode.CANNOT
    reason = reason or f"ended with status {process.returncode}"
    raise ProcessError(f"{name}: {reason}. {kept}", code)


def _hand_over(job: object, stdin: IO[str]) -> None:
    """Write the job to the process. One that has ended already reports that by its exit status."""
    with suppress(BrokenPipeError), stdin:
        json.dump(job, stdin)
