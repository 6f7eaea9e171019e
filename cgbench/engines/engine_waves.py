"""Start the processes of several engines, as many at once as memory holds, and time their cells.

A wave is the processes that are in memory together. Their cells take blocks in turn. Waves follow
each other.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from cgbench.engines.drivers.messages import Start, Started
from cgbench.engines.engine_cells import EngineCell, Work, time_engines
from cgbench.engines.engine_launch import KINDS, launch_of
from cgbench.engines.engine_log import log_facts
from cgbench.engines.engine_process import EngineError, EngineProcess
from cgbench.engines.engine_runs import EngineRun, SharedModel, captured_sizes
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

MEMORY_SHARE = 0.92
"""The share of the device that one wave may fill by its estimate."""

WORKSPACE_BYTES = {"cuda": 5 << 30, "cpu": 1 << 29}
"""What a process takes besides weights and KV: the context, workspaces, graphs, activations."""

KV_SLACK = 1.3
"""An engine's pages and its own layout of recurrent state take more than the tokens alone."""

LEAST_KV_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


@dataclass(frozen=True, slots=True)
class Member:
    """A ``Member`` is one process of a wave: an engine and the k that it serves."""

    run: EngineRun
    spec_tokens: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the engine with its k, as lines name it."""
        return f"{self.run.name} k={','.join(map(str, self.spec_tokens))}"

    @property
    def log_name(self) -> str:
        """Return the name of the log's file."""
        return f"{self.run.name}-k{'-'.join(map(str, self.spec_tokens))}.log"

    @property
    def kv_bytes(self) -> int:
        """Return the bytes of KV and recurrent state for the largest batch."""
        request, model = self.run.request, self.run.model
        tokens = request.workload.context_len + request.room
        slot = tokens * model.kv_bytes_per_token + model.state_bytes_per_slot
        return max(LEAST_KV_BYTES[model.device], int(KV_SLACK * (request.max_num_seqs + 1) * slot))

    @property
    def needed_bytes(self) -> int:
        """Return an estimate of the device memory of the process."""
        model = self.run.model
        given = self.run.settings.arguments.get("kv_cache_memory_bytes")
        kv = given if isinstance(given, int) else self.kv_bytes
        head = model.head_bytes if max(self.spec_tokens) else 0
        return model.weight_bytes + head + kv + WORKSPACE_BYTES[model.device]


def members(run: EngineRun) -> Iterator[Member]:
    """Yield the processes of an engine. k that it cannot serve are failures of the run."""
    kind, served = KINDS[run.name], run.model.served
    lacks = "decodes without drafts here" if not kind.drafts else served.no_drafts
    if run.name == OWN_ENGINE:
        lacks = ""
    possible = tuple(k for k in run.request.spec_tokens if not (k and lacks))
    run.num_k = len(possible)
    for k in run.request.spec_tokens:
        if k not in possible:
            run.add_omission(f"{run.name} k={k}: not measured: {lacks}")
    if kind.many_k and possible:
        yield Member(run, possible)
    else:
        yield from (Member(run, (k,)) for k in possible)


def waves(every: Sequence[Member], capacity: int, *, one_at_a_time: bool) -> list[list[Member]]:
    """Return ``every`` process in waves that fit ``capacity`` bytes by their estimates, in order.

    A process that does not fit has a wave of its own.
    """
    found: list[list[Member]] = []
    filled = 0
    for member in every:
        needed = member.needed_bytes
        if found and not one_at_a_time and filled + needed <= capacity:
            found[-1].append(member)
            filled += needed
        else:
            found.append([member])
            filled = needed
    return found


def capacity_bytes(device: str) -> int:
    """Return the bytes that a wave may fill."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return int(MEMORY_SHARE * free)
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def turns_of(every: Sequence[Sequence[Member]]) -> str:
    """Return the line on which processes took blocks in turn."""
    return ", then ".join(
        " and ".join(member.name for member in wave) + (" in turn" if len(wave) > 1 else "")
        for wave in every
    )


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
