"""Measure one batch size: all its scopes and k, interleaved, so that drift hits all alike.

There are two passes over the one iteration function. *Generate* decodes the prompts to their end
and gives tokens and acceptance. *Time* (``rounds``) runs a full batch around a stated mean context
and ignores EOS. It goes back to the state after prefill for every block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from cgbench.checks.short import StepAudit, prefill_failure, token_failure
from cgbench.engine.acceptance_counts import accepted_per_pos
from cgbench.engine.generation import generate
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import CellKey
from cgbench.engine.state import Prefilled
from cgbench.errors import OutOfMemoryError
from cgbench.floor.account import Account
from cgbench.measure.cell_run import CellRun, alive
from cgbench.measure.clock import Flush, StageTimer, eager_stages, graph_stages, l2_flush
from cgbench.measure.collectives_alone import CollectivesAlone, collectives_of
from cgbench.measure.disturbance import is_disturbed, power_limit
from cgbench.measure.rounds import (
    begin_timed,
    block_rows,
    count_experts,
    deciding,
    time_rounds,
)
from cgbench.measure.session import Session
from cgbench.measure.stop_rule import MIN_BLOCKS, UntilPrecise, doubt
from cgbench.models.heads.head import DraftHead
from cgbench.parallel.ranks import first_failure, first_unlike
from cgbench.request.choices import KvDtype
from cgbench.rundir.block_schema import Block
from cgbench.rundir.schema import COLD, SAME, TARGETS, WARM, Cell, Sample, TokenRow
from cgbench.words import Mode, Scope, Stage, Status
from cgbench.workload.load import sha256_of

STAGE_ITERATIONS = 20


@dataclass(frozen=True, slots=True)
class Group:
    """A ``Group`` holds what one batch size gave. It is the unit that is written and resumed."""

    cells: list[Cell]
    samples: list[Sample]
    tokens: list[TokenRow]
    accounts: list[Account]
    """The lines that each k's floor is the sum of."""
    failures: list[str]
    """A line for each cell whose short audit failed: which cell, and what differed."""
    blocks: list[Block]
    doubts: list[str]
    """Lines that qualify the times: the machine was too noisy, or a GPU ran at its power limit."""


def measure_group(session: Session, batch_size: int, on_step: Callable[[], None]) -> Group:
    """Measure every (k, scope) at ``batch_size`` and return the group. ``on_step`` is called
    ``num_steps`` times.
    """
    runs = {key: CellRun(runner, batch_size) for key, runner in session.deployment.runners.items()}
    waves = session.workload.waves(batch_size)
    for number, wave in enumerate(waves):
        _generate_wave(session, runs, wave, session.options.seed + number)
        on_step()
    prompts = [prompt for wave in waves for prompt in wave]
    with session.clock.auditing(), _memory_for("the short audit of tokens"):
        _audit_tokens(session, runs, prompts)
    with session.clock.auditing():
        prefilled = _audit_steps(session, runs, batch_size)
    flush = l2_flush(session.device) if session.options.cold_l2 else None
    time_rounds(session, [*runs.values()], prefilled, _rule(session), flush, on_step)
    _instrumented_passes(session, runs, prefilled, flush)
    on_step()
    return Group(
        cells=[_cell(session, key, run) for key, run in runs.items()],
        samples=[sample for run in runs.values() for sample in run.samples],
        tokens=[row for run in runs.values() for row in _token_rows(run, prompts)],
        accounts=_accounts(session, runs),
        failures=[_failure(run) for run in runs.values() if run.failure is not None],
        blocks=[row for run in runs.values() for row in block_rows(run, session.watch)],
        doubts=[f"batch size {batch_size}: {line}" for line in _doubts(session, runs)],
    )


def num_steps(session: Session, batch_size: int) -> int:
    """Return the steps of a group's progress: its waves, its least number of rounds and the stage
    pass.
    """
    return len(session.workload.waves(batch_size)) + MIN_BLOCKS + 1


def _generate_wave(
    session: Session, runs: dict[CellKey, CellRun], wave: list[list[int]], seed: int
) -> None:
    options = session.options
    prefilled = _prefill(session, wave, seed)
    first_tokens = prefilled.last.tolist()
    for run in alive(runs.values()):
        with run.watched(session.device, session.ranks):
            begin_decoding(
                session.spec,
                run.runner.state,
                prefilled,
                tokens_left=options.max_new_tokens - 1,
                ignore_eos=options.ignore_eos,
                seed=seed,
            )
            run.absorb(generate(run.runner, first_tokens))


def _prefill(
    session: Session, prompts: list[list[int]], seed: int, *, distinct: bool = False
) -> Prefilled:
    with (
        session.deployment.marked("prefill"),
        _memory_for(f"the prefill of {len(prompts)} requests"),
    ):
        most = session.options.max_num_batched_tokens
        return prefill(session.spec, prompts, most, seed, distinct=distinct)


@contextmanager
def _memory_for(what: str) -> Iterator[None]:
    """Raise ``OutOfMemoryError`` instead of torch's error. It names ``what``, and the flags to
    lower.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory in {what}: lower --max-num-batched-tokens, --batch-sizes or "
            "--context-len"
        ) from error


def _audit_tokens(session: Session, runs: dict[CellKey, CellRun], prompts: list[list[int]]) -> None:
    """Fail the cells whose tokens differ from plain decoding's or from a prefill's.

    Only float32 is audited. In lower precision sums of other shapes are rounded otherwise, and
    tokens may differ without a fault. So they may if keys and values or activations are rounded to
    FP8.
    """
    model = session.deployment.model
    if model.target.dtype != torch.float32 or model.rounds_to_fp8:
        return
    for key, run in runs.items():
        plain = _plain_run(session, runs, key)
        if plain is None or run.status is not Status.OK:
            continue
        failure = first_failure(
            token_failure(session.spec, prompts, plain.token_ids, run.token_ids)
        )
        if failure is not None:
            run.fail_audit(f"tokens differ from {plain.name}'s: {failure}")
    _audit_against_prefill(session, runs, prompts[0])


def _audit_against_prefill(
    session: Session, runs: dict[CellKey, CellRun], prompt: list[int]
) -> None:
    """Fail the cells whose first request a prefill would decode otherwise.

    A hybrid model is left out. Its prefill follows another rule than its decode, and the two differ
    by more than a tie in float32.
    """
    if not session.options.acceptance.is_greedy or session.spec.cache.recurrent is not None:
        return
    told: dict[tuple[int, ...], str | None] = {}
    for run in alive(runs.values()):
        tokens = tuple(run.token_ids[0])
        failure = first_unlike(tokens, "its tokens")
        if failure is None and tokens not in told:
            told[tokens] = first_failure(prefill_failure(session.spec, prompt, tokens))
        failure = failure or told[tokens]
        if failure is not None:
            run.fail_audit(f"tokens differ from a prefill's: {failure}")


def _plain_run(session: Session, runs: dict[CellKey, CellRun], key: CellKey) -> CellRun | None:
    """Return the run whose tokens the run of ``key`` must give, or None if there is none.

    It is plain decoding, eager if that is measured. Under a rule that is not lossless it is eager
    decoding at the same k.
    """
    k, scope = key
    is_lossless = session.options.acceptance.is_greedy
    keys = [(0, Scope.EAGER), (0, scope)] if is_lossless else [(k, Scope.EAGER)]
    found = [runs[each] for each in keys if each in runs and each != key]
    return next((run for run in found if run.status is Status.OK), None)


def _audit_steps(session: Session, runs: dict[CellKey, CellRun], batch_size: int) -> Prefilled:
    """Fail the cells whose graphs do otherwise than eager. Return the prefill that lies in the
    slots, whose contexts are those that timing begins at.
    """
    contexts = session.workload.contexts(batch_size, session.options.context_len)
    seed = session.options.seed
    audit = StepAudit(session.spec, lambda: _prefill(session, contexts, seed, distinct=True), seed)
    for run in alive(runs.values()):
        if run.mode is not Mode.GRAPH:
            continue
        with run.watched(session.device, session.ranks):
            failure = audit.failure(run.runner)
            if failure is not None:
                run.fail_audit(f"a replay is not eager's iteration: {failure}")
    return audit.prefilled


def _failure(run: CellRun) -> str:
    return f"{run.name}, batch size {run.batch_size}: {run.failure}"


def _instrumented_passes(
    session: Session, runs: dict[CellKey, CellRun], prefilled: Prefilled, flush: Flush | None
) -> None:
    """Measure what the timed pass leaves out: stages, experts that were read, and collectives
    alone.
    """
    _stage_pass(session, runs, prefilled, flush)
    if session.spec.target.has_mixtures:
        with _memory_for("the count of experts"):
            count_experts(session, [*runs.values()], prefilled)
    if session.ranks.size > 1:
        _collective_pass(session, runs)


def _rule(session: Session) -> UntilPrecise:
    options = session.options
    return UntilPrecise(options.precision, options.min_time_s, options.max_time_s)


def _doubts(session: Session, runs: dict[CellKey, CellRun]) -> list[str]:
    """Return the lines that qualify the times of the cells that decide."""
    cells = deciding([*runs.values()])
    line = doubt(_rule(session), {run.name: run.medians for run in cells})
    limited = power_limit({run.name: [block.watched for block in run.blocks] for run in cells})
    return [each for each in (line, limited) if each is not None]


def _stage_pass(
    session: Session, runs: dict[CellKey, CellRun], prefilled: Prefilled, flush: Flush | None
) -> None:
    timers: dict[tuple[int, Mode], StageTimer] = {}
    for run in alive(runs.values()):
        # The instrumented graph needs memory of its own. If there is none, the stages stay empty,
        # and what has been timed stands.
        with suppress(*([torch.OutOfMemoryError] if session.ranks.size == 1 else [])):
            # Phase and iteration graphs hold the same kernels, so one instrumented capture serves
            # both.
            key = (run.spec_tokens, run.mode)
            if key not in timers:
                timers[key] = _stage_timer(session, run)
            _time_stages(session, run, prefilled, timers[key], flush)


def _collective_pass(session: Session, runs: dict[CellKey, CellRun]) -> None:
    """Measure the collectives of each iteration. Scopes over the same rows make the same calls, so
    these are timed once.
    """
    by_rows: dict[tuple[int, int], list[CellRun]] = {}
    for run in alive(runs.values()):
        key = run.spec_tokens, run.runner.num_rows(run.batch_size)
        by_rows.setdefault(key, []).append(run)
    for (_, num_rows), group in by_rows.items():
        calls = collectives_of(session.spec, group[0].runner.state, num_rows)
        alone = CollectivesAlone(calls, session.device)
        alone.seconds()  # the first one warms up
        for _ in range(STAGE_ITERATIONS):
            seconds = alone.seconds()
            for run in group:
                run.add_sample(0, Stage.COLLECTIVES, seconds, None)
        alone.release()


def _stage_timer(session: Session, run: CellRun) -> StageTimer:
    state = run.runner.state
    state.clear()
    if run.mode is Mode.GRAPH:
        return graph_stages(session.spec, state, run.runner.num_rows(run.batch_size))
    return eager_stages(session.spec, state, run.batch_size)


def _time_stages(
    session: Session, run: CellRun, prefilled: Prefilled, timer: StageTimer, flush: Flush | None
) -> None:
    is_cuda = session.device.type == "cuda"
    for i in range(STAGE_ITERATIONS + 1):
        if i % (run.block_iterations + 1) == 0:
            begin_timed(session, run, prefilled)
        if flush is not None:
            flush()
        stages = timer.time_stages()
        if i == 0:
            continue  # the first one warms up
        for stage, seconds in stages.items():
            run.add_sample(0, stage, seconds, None if is_cuda else seconds)


def _cell(session: Session, key: CellKey, run: CellRun) -> Cell:
    deployment, options = session.deployment, session.options
    spec_tokens, scope = key
    num_rows = run.runner.num_rows(run.batch_size)
    is_graph = run.mode is Mode.GRAPH
    graph_bytes = deployment.graph_sets[key].num_bytes if is_graph else 0
    num_prompts = len(session.workload.prompts)
    measured = run.status is Status.OK
    batch = run.timed_batch
    return Cell(
        model=deployment.model.label,
        head=deployment.model.head_label if spec_tokens else "none",
        device=deployment.device.type,
        dtype=str(deployment.spec.target.dtype).removeprefix("torch."),
        attention=deployment.attention,
        compile=options.compile,
        acceptance=str(options.acceptance),
        tp_size=session.ranks.size,
        mode=run.mode,
        scope=scope,
        spec_tokens=spec_tokens,
        batch_size=run.batch_size,
        bucket=num_rows if is_graph else None,
        padding_frac=(num_rows - run.batch_size) / num_rows if is_graph else None,
        context_len=options.context_len,
        status=Status.DISTURBED if measured and is_disturbed(run.discarded) else run.status,
        num_drafted=len(run.accepted),
        num_accepted_per_pos=accepted_per_pos(run.accepted, spec_tokens),
        peak_memory_bytes=run.peak_memory_bytes + graph_bytes if measured else None,
        tokens_sha256=sha256_of(run.token_ids[:num_prompts]) if measured else None,
        floor_ms=session.floor.seconds(batch) * 1e3 if measured and batch else None,
        l2=COLD if options.cold_l2 else WARM,
        mean_context_len=run.mean_context_len,
        discarded_blocks=sum(map(bool, run.discarded)) if measured else None,
        routing=deployment.model.routing,
        quant=deployment.model.quant,
        kv_dtype=str(KvDtype.FP8) if deployment.model.kv_format.is_fp8 else SAME,
        mtp_modules=_num_modules(deployment.model.head, spec_tokens),
        draft_vocab=draft_vocab_of(deployment.model.head, spec_tokens),
        experts_read=run.experts_read.get(Stage.VERIFY),
    )


def _num_modules(head: DraftHead | None, spec_tokens: int) -> int:
    """The modules that draft, whatever k is. A row without drafts has the column's default."""
    return head.num_modules if head is not None and spec_tokens else 1


def draft_vocab_of(head: DraftHead | None, spec_tokens: int) -> str:
    """Return how many tokens a draft can be, or that it can be any of the target's."""
    size = None if head is None or not spec_tokens else head.draft_vocab_size
    return TARGETS if size is None else str(size)


def _accounts(session: Session, runs: dict[CellKey, CellRun]) -> list[Account]:
    """Return an account for every k. It is the account of the last sound scope, which is the
    nearest to the floor.
    """
    last = {run.spec_tokens: run for run in alive(runs.values())}
    return [
        session.floor.account_of(run.runner.scope, batch)
        for run in last.values()
        if (batch := run.timed_batch) is not None
    ]


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
