"""``--processes N``: the measurement in N fresh processes, one after another, and one run of them.

Each is an ordinary run in a directory of its own below ``--output``, so a kill or a failure loses
none that is finished, and ``--resume`` goes on in the middle of one. This process loads no model.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.cli.console import say
from cgbench.errors import ExitCode, ProcessError, RunDirectoryError
from cgbench.request.run_request import RunRequest

if TYPE_CHECKING:
    from cgbench.rundir.record_parts import Resumed
    from cgbench.rundir.store import RunDirectory

PARTS = "processes"


def measure_in_processes(request: RunRequest, path: Path, *, resume: bool) -> "RunDirectory":
    """Run what is missing, then merge; returns the finished run.

    Raises ``RunDirectoryError`` as ``run`` does, ``ProcessError`` where a process ends badly.
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
        say(f"process {number + 1} of {count}")
        run_apart(alone, part, f"--processes: process {number + 1} of {count}")
    opened = [RunDirectory.open(part) for part in parts]
    gone_on: list[Resumed] = [{"utc": now, "kept_processes": kept}] if resume else []
    run = merge_runs(opened, path, latency_markdown, resumed=gone_on)
    shutil.rmtree(path / PARTS)
    return run


def _check(path: Path, *, resume: bool) -> None:
    from cgbench.rundir.store import RunDirectory

    if not resume or (path / "run.json").exists():
        RunDirectory.check(path, resume=resume)
    elif not (path / PARTS).is_dir():
        raise RunDirectoryError(f"--resume: {path / PARTS}: missing; nothing was begun there")


def is_finished(part: Path, request: RunRequest) -> bool:
    """Whether ``part`` is a complete run; one that has not written its record holds nothing yet.

    Raises ``RunDirectoryError`` where it was asked for otherwise.
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
            f"--resume: {file} was begun with another {', '.join(flags)}; "
            "give the same, or choose another --output"
        )
    return record.complete


def run_apart(request: RunRequest, part: Path, name: str) -> None:
    """One run in a fresh process, begun or gone on with.

    Raises ``ProcessError``, beginning with ``name``, where it ends badly.
    """
    job = {
        "request": request.to_record(),
        "path": str(part),
        "resume": part.exists(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "cgbench.cli.worker"],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
    )
    if done.returncode == 0:
        return
    lines = done.stdout.strip().splitlines()
    reason = lines[-1] if lines else f"ended with status {done.returncode}"
    kept = "--resume keeps what is measured and goes on"
    codes = {int(code) for code in ExitCode} - {0}
    known = done.returncode in codes and lines
    code = ExitCode(done.returncode) if known else ExitCode.CANNOT
    raise ProcessError(f"{name}: {reason}; {kept}", code)
