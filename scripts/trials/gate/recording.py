"""Runs of one command, each in a process of its own, with and without the slow-down, in turn.

The processes are forked from a server that has imported torch and transformers and touched no
GPU: each makes its own CUDA context, loads, captures and measures; only the imports are shared.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any, Literal

from cgbench.rundir.store import RunDirectory
from gate.plant import Kernel, Spot

PLAIN, PLANTED = "plain", "planted"
RECORD = "recording.json"
Start = Literal["forkserver", "spawn"]
Context = ForkServerContext | SpawnContext

GOOD_CODES = (0, 4)
"""A disturbed run is part of the trial, as it would be of a week."""


@dataclass(frozen=True, slots=True)
class Job:
    """``cgbench run WORDS``, as often as there is time for. ``share`` of a cell's iteration is
    planted. ``num_runs`` of each kind, begun within ``seconds``. ``start`` is multiprocessing's way
    to start them: ``spawn`` where something must not be imported before the fork."""

    words: tuple[str, ...]
    path: Path
    share: float
    num_runs: int
    seconds: float
    start: Start = "forkserver"


@dataclass
class Recording:
    """``recording.json``: what was planted, what each run took. Added to run by run."""

    words: list[str]
    share: float
    kernel: dict[str, float] | None = None
    planted: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Recording":
        return cls(**json.loads((path / RECORD).read_text()))

    def write(self, path: Path) -> None:
        """Aside, then renamed into place: a kill leaves the one before."""
        path.mkdir(parents=True, exist_ok=True)
        aside = path / f"{RECORD}.tmp"
        aside.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(aside, path / RECORD)

    def names(self, kind: str) -> list[str]:
        """The runs of one kind that have ended, in the order made."""
        return [run["run"] for run in self.runs if run["kind"] == kind]

    def has(self, kind: str, name: str) -> bool:
        """Whether that run has ended."""
        return name in self.names(kind)

    def seconds_planted(self) -> dict[Spot, float]:
        """The known length, by cell."""
        return {_spot(row): row["seconds"] for row in self.planted}


def _spot(row: Mapping[Any, Any]) -> Spot:
    return Spot(row["scope"], row["spec_tokens"], row["batch_size"])


def record(job: Job, say: Callable[[str], None]) -> Recording:
    """Make the runs that are missing; those of an earlier, shorter call are kept."""
    begun = time.perf_counter()
    context = _context(job.start)
    context.set_forkserver_preload(["gate.plant", "cgbench.measure.setup"])
    recording = _opened(job)
    longest = max((run["seconds"] for run in recording.runs), default=0.0)
    for kind, number in _in_turn(job.num_runs):
        path = job.path / kind / f"{number:03}"
        if recording.has(kind, path.name):
            continue
        if time.perf_counter() - begun + longest > job.seconds:
            say(f"no time for {kind} {number}: --seconds {job.seconds:g} are over")
            break
        # What an earlier call left when it was killed is no run.
        shutil.rmtree(path, ignore_errors=True)
        if kind == PLANTED and not recording.planted:
            _plan_plant(job, recording, context)
            # Before the first run that holds it: one lost to a kill is planned no second time.
            recording.write(job.path)
        seconds, code = _run(job, recording, context, path, kind)
        longest = max(longest, seconds)
        recording.runs.append({"kind": kind, "run": path.name, "seconds": seconds, "code": code})
        recording.write(job.path)
        say(f"{kind} {number}: {seconds:.1f} s, exit code {code}")
    say(_summary(job, recording))
    return recording


def _context(start: Start) -> Context:
    if start == "spawn":
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("forkserver")


def _summary(job: Job, recording: Recording) -> str:
    counts = ", ".join(
        f"{len(recording.names(kind))} of {job.num_runs} {kind} runs" for kind in (PLAIN, PLANTED)
    )
    return f"{counts} in {job.path}. The same command goes on where it ended"


def _in_turn(num_runs: int) -> list[tuple[str, int]]:
    """A drift of the machine over the minutes of the trial hits both kinds alike."""
    return [(kind, number) for number in range(num_runs) for kind in (PLAIN, PLANTED)]


def _opened(job: Job) -> Recording:
    if not (job.path / RECORD).exists():
        return Recording([*job.words], job.share)
    found = Recording.read(job.path)
    if (found.words, found.share) != ([*job.words], job.share):
        sys.exit(f"error: {job.path / RECORD} is of other flags; choose another --output")
    return found


def _plan_plant(job: Job, recording: Recording, context: Context) -> None:
    """``share`` of each cell's median in the first plain run, as the kernel can give it."""
    latency = RunDirectory.open(job.path / PLAIN / "000").latency()
    rows = latency.astype(object).to_dict("records")
    wanted = {_spot(row): job.share * row["iteration_p50_ms"] / 1e3 for row in rows}
    is_cuda = set(latency["device"]) == {"cuda"}
    file = job.path / "kernel.json"
    if is_cuda:
        _in_process(context, _calibrate_to, (str(file),), job.path / "calibration.log")
        recording.kernel = json.loads(file.read_text())
        file.unlink()
    kernel = Kernel(**recording.kernel) if recording.kernel else None
    for spot, seconds in wanted.items():
        cycles = kernel.cycles(seconds) if kernel else None
        known = kernel.seconds(cycles) if kernel and cycles else seconds
        recording.planted.append({**spot._asdict(), "cycles": cycles, "seconds": known})


def _calibrate_to(file: str) -> None:
    from gate.plant import calibrate

    Path(file).write_text(json.dumps(asdict(calibrate())))


def _run(
    job: Job, recording: Recording, context: Context, path: Path, kind: str
) -> tuple[float, int]:
    """Seconds and exit code of one run."""
    words = ["run", *job.words, "--thin", "--output", str(path)]
    planted = recording.planted if kind == PLANTED else []
    begun = time.perf_counter()
    code = _in_process(context, _cgbench, (words, planted), job.path / "log.txt")
    return time.perf_counter() - begun, code


def _cgbench(words: list[str], planted: list[dict[str, Any]]) -> None:
    from cgbench.cli.app import main
    from gate.plant import plant_kernels, plant_waits

    if planted and planted[0]["cycles"] is not None:
        plant_kernels({_spot(row): row["cycles"] for row in planted})
    elif planted:
        plant_waits({_spot(row): row["seconds"] for row in planted})
    main(words)


def _in_process(
    context: Context, work: Callable[..., None], args: tuple[Any, ...], log: Path
) -> int:
    """``work(*args)`` in a fresh process; its exit code. Ends the trial where that is bad."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_logged, args=(str(log), work, args))
    process.start()
    process.join()
    code = process.exitcode
    if code not in GOOD_CODES:
        sys.exit(f"error: a process of the trial ended with {code}; {log} ends:\n" + _tail(log))
    return code


def _logged(log: str, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    work(*args)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-5:])
