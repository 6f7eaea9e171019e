"""Start the processes of a wave side by side, time their cells, and end them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from cgbench.engines.drivers.messages import Start, Started
from cgbench.engines.engine_cells import EngineCell, Work, time_engines
from cgbench.engines.engine_facts import captured_sizes
from cgbench.engines.engine_launch import launch_of
from cgbench.engines.engine_log import log_facts
from cgbench.engines.engine_members import Member
from cgbench.engines.engine_process import EngineError, EngineProcess
from cgbench.engines.engine_runs import EngineRun, SharedModel
from cgbench.floor.telemetry import Watch, open_telemetry
from cgbench.measure.stop_rule import MIN_BLOCKS, StoppingRule, UntilPrecise
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.progress import Progress
from cgbench.request.engines_request import EnginesRequest
from cgbench.request.resolution import (
    DEFAULT_MAX_TIME_S,
    DEFAULT_MIN_TIME_S,
    DEFAULT_PRECISION,
)
from cgbench.rundir.schema import OWN_ENGINE
from cgbench.words import Mode, Scope


def measure_wave(
    wave: Sequence[Member], request: EnginesRequest, folder: Path, progress: Progress
) -> list[EngineCell]:
    """Start the processes of a wave side by side, time their cells, and end them.

    Return the cells in the order measured. Every batch size is in the engines' run directories
    before the next one begins.
    """
    device = torch.device(wave[0].run.model.device)
    measured: list[EngineCell] = []
    with ExitStack() as held:
        telemetry = held.enter_context(open_telemetry(device))
        ready = _started(wave, request, folder, held, progress)
        if not ready:
            return measured
        watch = Watch(telemetry)
        for batch_size in request.workload.batch_sizes:
            cells = [
                cell
                for member, process, started in ready
                for cell in _cells(member, process, started, batch_size)
            ]
            _measure_batch(cells, request, wave, batch_size, watch, progress)
            measured += cells
    return measured


Ready = tuple[Member, EngineProcess, Started]


def _started(
    wave: Sequence[Member],
    request: EnginesRequest,
    folder: Path,
    held: ExitStack,
    progress: Progress,
) -> list[Ready]:
    """Start every process, then wait for each. One that fails is a failure of its run."""
    begun: list[tuple[Member, EngineProcess]] = []
    for member in wave:
        run = member.run
        log = folder / member.log_name
        run.logs.append(log)
        process = EngineProcess(launch_of(run.settings, run.model.routing), log)
        held.callback(process.stop)
        begun.append((member, process))
    ready: list[Ready] = []
    title = f"start {', '.join(member.name for member in wave)}"
    with progress.working(title):
        for member, process in begun:
            _try_send(member, process, request, progress)
        for member, process in begun:
            try:
                started = process.started(request.start_timeout)
            except EngineError as error:
                _fail(member.run, str(error), progress)
                continue
            started.facts.update(log_facts(process.log.read_text(errors="replace")))
            member.run.add_started(member.spec_tokens, started)
            ready.append((member, process, started))
    for member, _, started in ready:
        progress.log(f"{member.name}: ready in {started.import_s + started.start_s:.1f} s")
    return ready


def _try_send(
    member: Member, process: EngineProcess, request: EnginesRequest, progress: Progress
) -> None:
    try:
        process.start(start_of(member, request))
    except EngineError as error:
        _fail(member.run, str(error), progress)


def _fail(run: EngineRun, line: str, progress: Progress) -> None:
    if line not in run.failures:
        run.add_failure(line)
        progress.say(line)


def start_of(member: Member, request: EnginesRequest) -> Start:
    """Return what a process is started with."""
    model, settings = member.run.model, member.run.settings
    own = request.run.to_record() if member.run.name == OWN_ENGINE else {}
    # The prompts come with each batch, so that all engines decode the same ones.
    own_prompts = {"prompts": "random", "num_prompts": None, "chat_template": "auto"}
    length = request.workload.context_len + request.room
    return Start(
        model=model.served.path,
        spec_tokens=[*member.spec_tokens],
        max_num_seqs=request.max_num_seqs,
        max_num_batched_tokens=request.capture.max_num_batched_tokens or DEFAULT_MAX_BATCHED_TOKENS,
        max_model_len=length,
        dtype=model.dtype,
        device=model.device,
        seed=request.seed,
        is_dummy=model.served.is_dummy,
        has_own_code=model.served.has_own_code,
        kv_bytes=None if "kv_cache_memory_bytes" in settings.arguments else member.kv_bytes,
        arguments=dict(settings.arguments),
        request={**own, **own_prompts, "spec_tokens": [*member.spec_tokens]} if own else {},
    )


def _cells(
    member: Member, process: EngineProcess, started: Started, batch_size: int
) -> Iterator[EngineCell]:
    for k in member.spec_tokens:
        sizes = captured_sizes(started, k)
        bucket = next((size for size in sizes if size >= batch_size), None)
        whole = Scope.ITERATION if member.run.name == OWN_ENGINE else Scope.PHASE
        yield EngineCell(
            process=process,
            engine=member.run.name,
            spec_tokens=k,
            batch_size=batch_size,
            scope=whole if sizes else Scope.EAGER,
            mode=Mode.EAGER if bucket is None else Mode.GRAPH,
            bucket=bucket,
        )


def _measure_batch(
    cells: Sequence[EngineCell],
    request: EnginesRequest,
    wave: Sequence[Member],
    batch_size: int,
    watch: Watch,
    progress: Progress,
) -> None:
    runs = {member.run.name: member.run for member in wave}
    model = wave[0].run.model
    work = Work(
        prompts=model.workload.contexts(batch_size, request.workload.context_len),
        steps=request.steps,
        band=request.band,
        room=request.room,
        seed=request.seed,
        timeout_s=request.step_timeout,
    )
    with progress.bar(f"batch size {batch_size}", MIN_BLOCKS + 1) as bar:
        time_engines(
            cells,
            work,
            stop_rule_of(request, model),
            watch,
            on_failure=lambda cell: _fail(runs[cell.engine], cell.failure, progress),
            on_round=bar.advance,
        )
    for cell in cells:
        if cell.unprofiled:
            line = f"{cell.name}, batch size {cell.batch_size}: no profile: {cell.unprofiled}"
            runs[cell.engine].add_omission(line)
            progress.say(line)
    for name, run in runs.items():
        run.add_cells([cell for cell in cells if cell.engine == name], watch)
    progress.log(f"measured batch size {batch_size}")


@dataclass(frozen=True, slots=True)
class AtMost:
    """This rule ends a batch size as ``rule`` does, or after ``rounds`` rounds."""

    rule: StoppingRule
    rounds: int

    def is_over(self, rounds: int, elapsed_s: float, medians: Sequence[Sequence[float]]) -> bool:
        return rounds >= self.rounds or self.rule.is_over(rounds, elapsed_s, medians)


def stop_rule_of(request: EnginesRequest, model: SharedModel) -> StoppingRule:
    """Return the rule that ends a batch size, with the defaults of ``cgbench run``."""
    timing = request.timing
    most = DEFAULT_MAX_TIME_S[model.device] if timing.max_time_s is None else timing.max_time_s
    least = DEFAULT_MIN_TIME_S if timing.min_time_s is None else timing.min_time_s
    precision = DEFAULT_PRECISION if timing.precision is None else timing.precision
    return AtMost(UntilPrecise(precision, min(least, most), most), request.rounds)
