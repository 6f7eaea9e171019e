"""Measuring one batch size: all its scopes and k, interleaved, so that drift hits all alike.

Two passes over the one iteration function. *Generate* decodes the prompts to their end and gives
tokens and acceptance. *Time* runs a full batch inside a stated band of context lengths, EOS
ignored, going back to the state after prefill whenever the band is used up.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

from cgbench.engine.generate import generate
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.state import UNLIMITED_TOKENS, Prefilled
from cgbench.errors import OutOfMemoryError
from cgbench.measure.acceptance import accepted_per_pos
from cgbench.measure.audit.short import StepAudit, token_failure
from cgbench.measure.bench import Bench, CellKey
from cgbench.measure.cell_run import CellRun
from cgbench.measure.collectives import STAGE as COLLECTIVES
from cgbench.measure.collectives import CollectivesAlone, collectives_of
from cgbench.measure.timing import (
    IterationTime,
    StageTimer,
    eager_stages,
    graph_stages,
    time_iterations,
)
from cgbench.measure.workload import sha256_of
from cgbench.parallel.ranks import first_failure, tp_size
from cgbench.report.schema import Cell, Mode, Sample, Scope, Status, TokenRow

NUM_BLOCKS = 10
WARMUP_ITERATIONS = 3
STAGE_ITERATIONS = 20

ITERATION_STAGE = "iteration"


@dataclass(frozen=True, slots=True)
class Group:
    """What one batch size gave: the unit that is written and resumed."""

    cells: list[Cell]
    samples: list[Sample]
    tokens: list[TokenRow]
    failures: list[str]
    """A line for each cell whose short audit failed: which cell, and what differed."""


def measure_group(bench: Bench, batch_size: int, on_step: Callable[[], None]) -> Group:
    """Measure every (k, scope) at ``batch_size``; ``on_step`` is called ``num_steps`` times."""
    runs = {key: CellRun(runner, batch_size) for key, runner in bench.runners.items()}
    waves = bench.workload.waves(batch_size)
    for number, wave in enumerate(waves):
        _generate_wave(bench, runs, wave, bench.options.seed + number)
        on_step()
    prompts = [prompt for wave in waves for prompt in wave]
    _audit_tokens(bench, runs, prompts)
    _time_pass(bench, runs, batch_size, on_step)
    return Group(
        cells=[_cell(bench, key, run) for key, run in runs.items()],
        samples=[sample for run in runs.values() for sample in run.samples],
        tokens=[row for run in runs.values() for row in _token_rows(run, prompts)],
        failures=[_failure(run) for run in runs.values() if run.failure is not None],
    )


def num_steps(bench: Bench, batch_size: int) -> int:
    """Steps of a group's progress: its waves, its timed blocks, and the stage pass."""
    return len(bench.workload.waves(batch_size)) + NUM_BLOCKS + 1


def _generate_wave(
    bench: Bench, runs: dict[CellKey, CellRun], wave: list[list[int]], seed: int
) -> None:
    options = bench.options
    prefilled = _prefill(bench, wave, seed)
    first_tokens = prefilled.last.tolist()
    for run in _alive(runs):
        with run.watched(bench.device):
            begin_decoding(
                bench.spec,
                run.runner.state,
                prefilled,
                tokens_left=options.max_new_tokens - 1,
                ignore_eos=options.ignore_eos,
                seed=seed,
            )
            run.absorb(generate(run.runner, first_tokens))


def _prefill(bench: Bench, prompts: list[list[int]], seed: int) -> Prefilled:
    try:
        return prefill(bench.spec, prompts, bench.options.max_num_batched_tokens, seed)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory in the prefill of {len(prompts)} requests: "
            "lower --max-num-batched-tokens, --batch-sizes or --context-len"
        ) from error


def _alive(runs: dict[CellKey, CellRun]) -> list[CellRun]:
    return [run for run in runs.values() if run.status is Status.OK]


def _audit_tokens(bench: Bench, runs: dict[CellKey, CellRun], prompts: list[list[int]]) -> None:
    """Fail the cells whose tokens are not plain decoding's; in lower precision sums of other shapes
    are rounded otherwise, and tokens may differ without a fault."""
    if bench.spec.target.dtype != torch.float32:
        return
    for key, run in runs.items():
        plain = _plain_run(bench, runs, key)
        if plain is None or run.status is not Status.OK:
            continue
        failure = first_failure(token_failure(bench.spec, prompts, plain.token_ids, run.token_ids))
        if failure is not None:
            run.fail_audit(f"tokens differ from {plain.name}'s: {failure}")


def _plain_run(bench: Bench, runs: dict[CellKey, CellRun], key: CellKey) -> CellRun | None:
    """The run that ``key`` must give the tokens of: plain decoding, eager where it is measured;
    under a rule that is not lossless, eager of the same k."""
    k, scope = key
    is_lossless = bench.options.acceptance == "greedy"
    keys = [(0, Scope.EAGER), (0, scope)] if is_lossless else [(k, Scope.EAGER)]
    found = [runs[each] for each in keys if each in runs and each != key]
    return next((run for run in found if run.status is Status.OK), None)


def _audit_steps(
    bench: Bench, runs: dict[CellKey, CellRun], contexts: list[list[int]]
) -> Prefilled:
    """Fail the cells whose graphs do not do what eager does; returns the prefill of ``contexts``
    that lies in the slots."""
    seed = bench.options.seed
    audit = StepAudit(bench.spec, lambda: _prefill(bench, contexts, seed), seed)
    for run in _alive(runs):
        if run.mode is not Mode.GRAPH:
            continue
        with run.watched(bench.device):
            failure = first_failure(audit.failure(run.runner))
            if failure is not None:
                run.fail_audit(f"a replay is not eager's iteration: {failure}")
    return audit.prefilled


def _failure(run: CellRun) -> str:
    return f"{run.name}, batch size {run.batch_size}: {run.failure}"


def _time_pass(
    bench: Bench, runs: dict[CellKey, CellRun], batch_size: int, on_step: Callable[[], None]
) -> None:
    options = bench.options
    contexts = bench.workload.contexts(batch_size, options.context_len)
    prefilled = _audit_steps(bench, runs, contexts)
    for run in _alive(runs):
        with run.watched(bench.device):
            _time(bench, run, prefilled, WARMUP_ITERATIONS)
    for block in range(NUM_BLOCKS):
        for run in _alive(runs):
            with run.watched(bench.device):
                for times in _time(bench, run, prefilled, _block_size(bench, block)):
                    run.add_sample(block, ITERATION_STAGE, times.gpu_s, times.wall_s)
        on_step()
    _stage_pass(bench, runs, prefilled)
    if tp_size() > 1:
        _collective_pass(bench, runs)
    on_step()


def _time(bench: Bench, run: CellRun, prefilled: Prefilled, count: int) -> list[IterationTime]:
    """``count`` iterations, in stretches that each stay inside the band."""
    times: list[IterationTime] = []
    while len(times) < count:
        _begin_timed(bench, run, prefilled)
        stretch = min(_max_stretch(bench, run), count - len(times))
        times += time_iterations(run.runner, run.batch_size, stretch)
    return times


def _block_size(bench: Bench, block: int) -> int:
    """Timed iterations of a block: they differ by one at most, and add up to what was asked."""
    asked = bench.options.iterations
    return (block + 1) * asked // NUM_BLOCKS - block * asked // NUM_BLOCKS


def _begin_timed(bench: Bench, run: CellRun, prefilled: Prefilled) -> None:
    begin_decoding(
        bench.spec,
        run.runner.state,
        prefilled,
        tokens_left=UNLIMITED_TOKENS,
        ignore_eos=True,
        seed=bench.options.seed + run.next_stretch(),
    )


def _max_stretch(bench: Bench, run: CellRun) -> int:
    """Timed iterations before the band could be left, one untimed iteration before them."""
    return bench.options.band // (run.spec_tokens + 1) - 1


def _stage_pass(bench: Bench, runs: dict[CellKey, CellRun], prefilled: Prefilled) -> None:
    timers: dict[tuple[int, Mode], StageTimer] = {}
    for run in _alive(runs):
        # The instrumented graph needs memory of its own. Without it the stages stay empty; what
        # has been timed stands.
        with suppress(*([torch.OutOfMemoryError] if tp_size() == 1 else [])):
            # Phase and iteration graphs hold the same kernels: one instrumented capture serves.
            key = (run.spec_tokens, run.mode)
            if key not in timers:
                timers[key] = _stage_timer(bench, run)
            _time_stages(bench, run, prefilled, timers[key])


def _collective_pass(bench: Bench, runs: dict[CellKey, CellRun]) -> None:
    """What the collectives take of each iteration; scopes over the same rows make the same ones."""
    by_rows: dict[tuple[int, int], list[CellRun]] = {}
    for run in _alive(runs):
        key = run.spec_tokens, run.runner.num_rows(run.batch_size)
        by_rows.setdefault(key, []).append(run)
    for (_, num_rows), group in by_rows.items():
        calls = collectives_of(bench.spec, group[0].runner.state, num_rows)
        alone = CollectivesAlone(calls, bench.device)
        alone.seconds()  # the first one warms up
        for _ in range(STAGE_ITERATIONS):
            seconds = alone.seconds()
            for run in group:
                run.add_sample(0, COLLECTIVES, seconds, None)
        alone.release()


def _stage_timer(bench: Bench, run: CellRun) -> StageTimer:
    state = run.runner.state
    state.clear()
    if run.mode is Mode.GRAPH:
        return graph_stages(bench.spec, state, run.runner.num_rows(run.batch_size))
    return eager_stages(bench.spec, state, run.batch_size)


def _time_stages(bench: Bench, run: CellRun, prefilled: Prefilled, timer: StageTimer) -> None:
    is_cuda = bench.device.type == "cuda"
    for i in range(STAGE_ITERATIONS + 1):
        if i % _max_stretch(bench, run) == 0:
            _begin_timed(bench, run, prefilled)
        stages = timer.time_stages()
        if i == 0:
            continue  # the first one warms up
        for stage, seconds in stages.items():
            run.add_sample(0, stage, seconds, None if is_cuda else seconds)


def _cell(bench: Bench, key: CellKey, run: CellRun) -> Cell:
    spec_tokens, scope = key
    num_rows = run.runner.num_rows(run.batch_size)
    is_graph = run.mode is Mode.GRAPH
    graph_bytes = bench.graph_sets[key].num_bytes if is_graph else 0
    num_prompts = len(bench.workload.prompts)
    measured = run.status is Status.OK
    return Cell(
        model=bench.model.label,
        head=bench.model.head_label if spec_tokens else "none",
        device=bench.device.type,
        dtype=str(bench.spec.target.dtype).removeprefix("torch."),
        attention=bench.attention,
        compile="off",
        acceptance=bench.options.acceptance,
        tp_size=tp_size(),
        mode=run.mode,
        scope=scope,
        spec_tokens=spec_tokens,
        batch_size=run.batch_size,
        bucket=num_rows if is_graph else None,
        padding_frac=(num_rows - run.batch_size) / num_rows if is_graph else None,
        context_len=bench.options.context_len,
        status=run.status,
        num_drafted=len(run.accepted),
        num_accepted_per_pos=accepted_per_pos(run.accepted, spec_tokens),
        peak_memory_bytes=run.peak_memory_bytes + graph_bytes if measured else None,
        tokens_sha256=sha256_of(run.token_ids[:num_prompts]) if measured else None,
        floor_ms=None,
    )


def _token_rows(run: CellRun, prompts: list[list[int]]) -> list[TokenRow]:
    if run.status is not Status.OK:
        return []
    return [
        TokenRow(
            scope=run.runner.scope,
            mode=run.mode,
            spec_tokens=run.spec_tokens,
            batch_size=run.batch_size,
            request=request,
            prompt_ids=prompt,
            token_ids=token_ids,
        )
        for request, (prompt, token_ids) in enumerate(zip(prompts, run.token_ids, strict=True))
    ]
