"""The timed pass runs rounds of blocks until every cell's time is known well enough.

A block is one stretch of iterations from the state after prefill on. It spans the same band of
context lengths at every k: as many iterations as bring the mean context to the band's middle.

A round holds one block of every cell of the batch size, in an order drawn anew for each round. So a
drift of the machine hits all cells alike. So does the trace that one cell leaves for the next.
Cells that are settled stay in, because rounds without them would be rounds of another machine.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

import torch

from cgbench.engine.experts_read import ExpertCounter
from cgbench.engine.iteration import iteration
from cgbench.engine.prefill import begin_decoding
from cgbench.engine.state import DecodeState, Prefilled
from cgbench.floor.telemetry import Reading, Watch
from cgbench.measure.cell_run import CellRun, TimedBlock, alive
from cgbench.measure.clock import Flush, num_untimed, time_iterations
from cgbench.measure.disturbance import Watched, reasons_to_discard
from cgbench.measure.session import Session
from cgbench.measure.stop_rule import MIN_BLOCKS, StoppingRule
from cgbench.parallel.ranks import agreed, gathered
from cgbench.rundir.block_schema import Block
from cgbench.words import Mode, Stage

STRETCH_OF_BLOCK_0 = 1
"""Stretch 0 of each cell is the one that counts a block's iterations."""


def time_rounds(
    session: Session,
    runs: Sequence[CellRun],
    prefilled: Prefilled,
    rule: StoppingRule,
    flush: Flush | None,
    on_step: Callable[[], None],
) -> None:
    """Time rounds until ``rule`` ends them, and fill the runs' ``blocks`` and ``samples``.

    ``on_step`` is called ``MIN_BLOCKS`` times.
    """
    for run in alive(runs):
        with run.watched(session.device, session.ranks):
            run.block_iterations = _count_iterations(session, run, prefilled)
    session.watch.read()
    start = time.perf_counter()
    draw = random.Random(f"rounds {session.options.seed}")
    for number in count():
        left = alive(runs)
        for run in draw.sample(left, len(left)):
            with run.watched(session.device, session.ranks):
                run.blocks.append(_block(session, run, prefilled, number, flush))
        _judge(left, session.watch)
        if number < MIN_BLOCKS:
            on_step()
        medians = [run.medians for run in deciding(runs)]
        # Every rank takes the first rank's answer. If their answers differed, they would wait for
        # each other for ever.
        if agreed(not medians or rule.is_over(number + 1, time.perf_counter() - start, medians)):
            break
    for _ in range(number + 1, MIN_BLOCKS):
        on_step()
    for run in alive(runs):
        run.keep_samples()


def deciding(runs: Sequence[CellRun]) -> list[CellRun]:
    """Return the cells that must be settled. They are those that replay graphs, because the gate
    judges them. If no cell replays graphs, they are all.
    """
    left = alive(runs)
    return [run for run in left if run.mode is Mode.GRAPH] or left


def _count_iterations(session: Session, run: CellRun, prefilled: Prefilled) -> int:
    """Return the number of iterations of a block, by going through one. Their mean context is the
    nearest to the band's middle. This also warms up.
    """
    seq_len = run.runner.state.rows(run.batch_size).seq_len
    begin_timed(session, run, prefilled)
    total = 0.0
    nearest, best = 1, float("inf")
    for number in count(1):
        run.runner.step(run.batch_size)  # the first is the untimed one
        total += float(seq_len.double().mean())
        away = agreed(total / number - session.options.mean_context_len)
        if abs(away) < best:
            nearest, best = number, abs(away)
        if away >= 0:
            return nearest
    raise AssertionError


def begin_timed(session: Session, run: CellRun, prefilled: Prefilled) -> None:
    """Go back to the state after prefill. A request that would leave its KV rows stops, but is
    still computed with the others.
    """
    _begin_stretch(session, run.runner.state, prefilled, run.next_stretch())


def _begin_stretch(
    session: Session, state: DecodeState, prefilled: Prefilled, stretch: int
) -> None:
    begin_decoding(
        session.spec,
        state,
        prefilled,
        tokens_left=session.options.reach,
        ignore_eos=True,
        seed=session.options.seed + stretch,
    )


@torch.inference_mode()
def count_experts(session: Session, runs: Sequence[CellRun], prefilled: Prefilled) -> None:
    """Fill the runs' ``experts_read`` by repeating the timed iterations of block 0, launched by the
    host.

    Counting inside the timed iterations would disturb their times. Padding is left out. Scopes
    choose the same experts, so each k is counted once.
    """
    counted: dict[int, dict[Stage, float]] = {}
    for run in alive(runs):
        k = run.spec_tokens
        if k not in counted:
            counted[k] = _experts_of_block(session, run, prefilled)
        run.experts_read = counted[k]


def _experts_of_block(session: Session, run: CellRun, prefilled: Prefilled) -> dict[Stage, float]:
    spec = replace(session.spec, runs_compiled=False)
    state = run.runner.state
    rows = state.rows(run.batch_size)
    _begin_stretch(session, state, prefilled, STRETCH_OF_BLOCK_0)
    iteration(spec, rows)  # the untimed one before them
    counter = ExpertCounter(spec)
    with counter.counting():
        for _ in range(run.block_iterations):
            iteration(spec, rows, counter.mark)
    return counter.means()


def _block(
    session: Session, run: CellRun, prefilled: Prefilled, number: int, flush: Flush | None
) -> TimedBlock:
    before = session.watch.latest
    begin_timed(session, run, prefilled)
    times = time_iterations(run.runner, run.batch_size, run.block_iterations, flush)
    after = session.watch.read()
    end = float(run.runner.state.rows(run.batch_size).seq_len.double().mean())
    # Context grows by the same amount in every iteration. The first timed one begins after one.
    count = run.block_iterations
    growth = (end - session.options.context_len) / (count + num_untimed(session.device))
    mean_context_len = session.options.context_len + growth * (count + 1) / 2
    return TimedBlock(number, times, mean_context_len, Watched(before, after))


def _judge(runs: Sequence[CellRun], watch: Watch) -> None:
    """Decide again for every block whether it counts. It does not if it was disturbed on any rank,
    because the other ranks waited in it.
    """
    own = [_reasons(run, watch) for run in runs]
    for run, of_ranks in zip(runs, zip(*gathered(own), strict=True), strict=True):
        run.discarded = [next(filter(None, each), "") for each in zip(*of_ranks, strict=True)]


def _reasons(run: CellRun, watch: Watch) -> list[str]:
    return reasons_to_discard([block.watched for block in run.blocks], watch.at_start)


def block_rows(run: CellRun, watch: Watch) -> list[Block]:
    """Return the cell's rows of ``blocks.csv``."""
    pairs = zip(run.blocks, run.discarded, strict=True)
    return [_block_row(run, block, reason, watch) for block, reason in pairs]


def _block_row(run: CellRun, block: TimedBlock, reason: str, watch: Watch) -> Block:
    readings = block.watched.readings
    after = block.watched.after or Reading()
    reasons = {each for reading in readings for each in reading.reasons}
    others = {each for reading in readings for each in reading.processes} - watch.at_start
    return Block(
        scope=run.runner.scope,
        spec_tokens=run.spec_tokens,
        batch_size=run.batch_size,
        process=0,
        block=block.number,
        discarded=reason or None,
        iterations=len(block.times),
        iteration_p50_s=block.median_s,
        mean_context_len=block.mean_context_len,
        experts_read=run.experts_read.get(Stage.VERIFY) if block.number == 0 else None,
        sm_clock_mhz=after.sm_clock_mhz,
        memory_clock_mhz=after.memory_clock_mhz,
        temperature_c=after.temperature_c,
        power_w=after.power_w,
        throttle_reasons=";".join(sorted(reasons)) or None,
        other_processes=len(others) if readings else None,
    )
