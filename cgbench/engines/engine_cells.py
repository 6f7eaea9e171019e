"""Time the cells of several engines in rounds: one block of every cell in turn.

A block is a few untimed steps and then ``steps`` timed ones, in the engine's own process. A batch
goes on from block to block, until its context has left the band. Then it is prefilled again.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from cgbench.engines.drivers.messages import Prefill, Profiled, Stepped
from cgbench.engines.engine_process import EngineError, EngineProcess
from cgbench.floor.telemetry import Reading, Watch
from cgbench.measure.disturbance import Watched, is_disturbed, reasons_to_discard
from cgbench.measure.stop_rule import MIN_BLOCKS, StoppingRule
from cgbench.request.engines_request import PROFILED_STEPS, UNTIMED_STEPS
from cgbench.rundir.block_schema import Block
from cgbench.rundir.schema import Sample
from cgbench.words import Mode, Scope, Stage, Status

AFTER_PAUSE = 4
"""Untimed steps after another engine's block."""


@dataclass(frozen=True, slots=True)
class Work:
    """A ``Work`` states what every cell of one batch size decodes. Lengths are tokens."""

    prompts: list[list[int]]
    steps: int
    band: int
    room: int
    seed: int
    timeout_s: float

    @property
    def context_len(self) -> int:
        """Return the length of each prompt."""
        return len(self.prompts[0])


@dataclass(frozen=True, slots=True)
class EngineBlock:
    """An ``EngineBlock`` is one timed block of one cell."""

    number: int
    stepped: Stepped
    mean_context_len: float
    watched: Watched

    @property
    def median_s(self) -> float:
        """Return the median time of a step."""
        times = sorted(self.times)
        middle = len(times) // 2
        return times[middle] if len(times) % 2 else (times[middle - 1] + times[middle]) / 2

    @property
    def times(self) -> list[float]:
        """Return the seconds of each step: by device events where the engine's clock has them."""
        return self.stepped.device_s or self.stepped.wall_s


@dataclass
class EngineCell:
    """An ``EngineCell`` is one engine at one k and batch size, and what was measured of it."""

    process: EngineProcess
    engine: str
    spec_tokens: int
    batch_size: int
    scope: Scope
    mode: Mode
    bucket: int | None
    blocks: list[EngineBlock] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    profiled: Profiled | None = None
    unprofiled: str = ""
    """Why there is no profile, if one was asked for."""
    tokens: list[list[int]] = field(default_factory=list)
    failure: str = ""
    is_out_of_memory: bool = False
    _emitted: list[int] | None = None
    """The tokens of each request of the batch that the engine holds. None if it holds none."""

    @property
    def name(self) -> str:
        """Return the name of the cell in lines."""
        return f"{self.engine} k={self.spec_tokens}"

    @property
    def status(self) -> Status:
        """Return whether the cell's numbers can be trusted."""
        if self.is_out_of_memory:
            return Status.OOM
        return Status.DISTURBED if is_disturbed(self.discarded) else Status.OK

    @property
    def kept(self) -> list[EngineBlock]:
        """Return the blocks that count."""
        pairs = zip(self.blocks, self.discarded, strict=True)
        return [block for block, reason in pairs if not reason]

    @property
    def peak_memory_bytes(self) -> int | None:
        """Return the most memory of the engine's process so far."""
        found = [block.stepped.memory_bytes for block in self.blocks]
        return max((each for each in found if each), default=None)

    def leave(self) -> None:
        """Note that the engine has begun another batch."""
        self._emitted = None

    def take_block(self, work: Work, number: int, watch: Watch) -> None:
        """Time one block. Raise ``EngineError`` if the engine fails."""
        before = watch.latest
        untimed = UNTIMED_STEPS if self._begins_batch(work) else AFTER_PAUSE
        stepped = self.process.steps(work.steps, untimed, work.timeout_s)
        start = self._grow([stepped.untimed])
        end = self._grow(stepped.emitted)
        # The newest token has no row in the cache yet. A step reads what was there before it.
        steps = len(stepped.emitted)
        mean_context = work.context_len - 1 + start + (end - start) * (steps - 1) / (2 * steps)
        if self.process.begins_anew:
            self.leave()
        after = watch.read()
        self.blocks.append(EngineBlock(number, stepped, mean_context, Watched(before, after)))

    def _begins_batch(self, work: Work) -> bool:
        """Prefill the batch if there is none, or if a request of it has left the band. Return
        whether that was so.
        """
        if self._emitted is not None and max(self._emitted) <= work.band:
            return False
        asked = Prefill(self.spec_tokens, work.prompts, work.room, work.seed)
        self._emitted = self.process.prefill(asked, work.timeout_s).emitted
        return True

    def _grow(self, emitted: Sequence[Sequence[int]]) -> float:
        """Count the tokens of steps, and return the mean number that requests have then."""
        assert self._emitted is not None
        for step in emitted:
            if step:
                self._emitted = [had + new for had, new in zip(self._emitted, step, strict=True)]
        return sum(self._emitted) / len(self._emitted)

    def take_profile(self, work: Work) -> None:
        """Profile the cell, and keep the tokens that it has decoded. Raise ``EngineError``."""
        self._begins_batch(work)
        self.profiled = self.process.profile(PROFILED_STEPS, UNTIMED_STEPS, work.timeout_s)
        self.unprofiled = self.profiled.problem
        self.tokens = self.process.tokens(work.timeout_s)
        self.leave()

    def fail(self, error: EngineError) -> None:
        """Keep why the engine failed. What this cell has measured is dropped."""
        self.failure = str(error)
        self.is_out_of_memory = error.is_memory
        self.blocks.clear()
        self.discarded.clear()

    def emissions(self) -> list[list[int]]:
        """Return the tokens of every timed step of the blocks that count, a request each."""
        return [step for block in self.kept for step in block.stepped.emitted]

    def accepted_per_pos(self) -> tuple[tuple[int, ...], int]:
        """Return how many steps kept the draft at each position, and how many steps there were.

        A request that got m tokens kept its first m - 1 drafts. A request that got none made no
        step.
        """
        made = [count for step in self.emissions() for count in step if count > 0]
        positions = range(1, self.spec_tokens + 1)
        return tuple(sum(count > position for count in made) for position in positions), len(made)

    def samples(self) -> list[Sample]:
        """Return a row of ``samples.parquet`` for every timed step that counts."""
        numbers = count()
        return [
            Sample(
                self.scope,
                self.spec_tokens,
                self.batch_size,
                self.mode,
                block.number,
                next(numbers),
                Stage.ITERATION,
                gpu_s,
                wall_s,
            )
            for block in self.kept
            for gpu_s, wall_s in zip(block.times, block.stepped.wall_s, strict=True)
        ]

    def block_rows(self, watch: Watch) -> list[Block]:
        """Return the cell's rows of ``blocks.csv``."""
        pairs = zip(self.blocks, self.discarded, strict=True)
        return [self._block_row(block, reason, watch) for block, reason in pairs]

    def _block_row(self, block: EngineBlock, reason: str, watch: Watch) -> Block:
        readings = block.watched.readings
        after = block.watched.after or Reading()
        others = {each for reading in readings for each in reading.processes} - watch.at_start
        return Block(
            scope=self.scope,
            spec_tokens=self.spec_tokens,
            batch_size=self.batch_size,
            process=0,
            block=block.number,
            discarded=reason or None,
            iterations=len(block.times),
            iteration_p50_s=block.median_s,
            mean_context_len=block.mean_context_len,
            sm_clock_mhz=after.sm_clock_mhz,
            memory_clock_mhz=after.memory_clock_mhz,
            temperature_c=after.temperature_c,
            power_w=after.power_w,
            throttle_reasons=";".join(sorted({r for each in readings for r in each.reasons}))
            or None,
            other_processes=len(others) if readings else None,
        )


def time_engines(
    cells: Sequence[EngineCell],
    work: Work,
    rule: StoppingRule,
    watch: Watch,
    *,
    on_failure: Callable[[EngineCell], object],
    on_round: Callable[[], object],
) -> None:
    """Time ``cells`` in rounds until ``rule`` ends them, then profile each.

    A cell whose engine fails leaves the rounds. ``on_failure`` is told, and the others go on. A
    profile that fails is left out, and what was timed stays.
    ``on_round`` is called after each of the first ``MIN_BLOCKS`` rounds, and once at the end.
    """
    draw = random.Random(f"rounds {work.seed}")
    watch.read()
    start = time.perf_counter()
    for number in count():
        left = _alive(cells)
        if not left:
            return
        for cell in draw.sample(left, len(left)):
            _try(cell, on_failure, lambda: cell.take_block(work, number, watch))  # noqa: B023
            _leave_others(cell, cells)
        for cell in _alive(cells):
            watched = [block.watched for block in cell.blocks]
            cell.discarded = reasons_to_discard(watched, watch.at_start)
        if number < MIN_BLOCKS:
            on_round()
        medians = [[block.median_s for block in cell.kept] for cell in _alive(cells)]
        if not medians or rule.is_over(number + 1, time.perf_counter() - start, medians):
            break
    for cell in _alive(cells):
        try:
            cell.take_profile(work)
        except EngineError as error:
            # What was timed stands.
            cell.unprofiled = str(error)
            cell.leave()
        _leave_others(cell, cells)
    on_round()


def _alive(cells: Sequence[EngineCell]) -> list[EngineCell]:
    return [cell for cell in cells if not cell.failure]


def _try(
    cell: EngineCell, on_failure: Callable[[EngineCell], object], work: Callable[[], object]
) -> None:
    try:
        work()
    except EngineError as error:
        cell.fail(error)
        on_failure(cell)


def _leave_others(cell: EngineCell, cells: Sequence[EngineCell]) -> None:
    """Let the other cells of the same process know that their batch is gone."""
    for other in cells:
        if other is not cell and other.process is cell.process:
            other.leave()
