"""Measuring one batch size: what is counted, what is timed, and what one bad cell spoils.

The model is a bigram table whose head errs after known tokens, so that every iteration's
acceptance can be worked out again, in plain Python, from the tokens alone.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cgbench.engine import runner
from cgbench.engine.generation import Generated
from cgbench.engine.iteration import Speculator
from cgbench.engine.iteration import iteration as real_iteration
from cgbench.engine.runner import EagerRunner, Runner
from cgbench.errors import OutOfMemoryError
from cgbench.floor.least_time import Batch
from cgbench.kernels.row_updates import RowState
from cgbench.measure import clock, group, rounds, stop_rule
from cgbench.measure.group import STAGE_ITERATIONS, Group, measure_group, num_steps
from cgbench.measure.session import Session
from cgbench.measure.stop_rule import MIN_BLOCKS
from cgbench.rundir.schema import Cell
from cgbench.rundir.summary import latency_frame, samples_frame
from cgbench.words import Mode, Scope, Stage, Status
from cgbench.workload.load import sha256_of
from tests.support.bigram import SUCCESSOR, VOCAB, WRONG_AFTER, make_bigram
from tests.support.fixtures import FEW_BLOCKS
from tests.support.session import (
    BATCH,
    CONTEXT_LEN,
    ITERATIONS,
    KS,
    MAX_NEW_TOKENS,
    PROMPTS,
    make_session,
)

STAGES = {
    0: {"verify", "accept", "commit"},
    1: {"verify", "accept", "draft_1", "commit"},
    3: {"verify", "accept", "draft_1", "draft_2", "draft_3", "commit"},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return make_session(make_bigram(tmp_path_factory.mktemp("bigram"), WRONG_AFTER))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer blocks and stages than the product takes, for tests that count neither."""
    for module in (group, rounds, stop_rule):
        monkeypatch.setattr(module, "MIN_BLOCKS", FEW_BLOCKS)
    monkeypatch.setattr(group, "STAGE_ITERATIONS", FEW_BLOCKS)


@dataclass(frozen=True)
class Measured:
    group: Group
    steps: int

    @property
    def cells(self) -> dict[int, Cell]:
        return {cell.spec_tokens: cell for cell in self.group.cells}


@pytest.fixture(scope="module")
def measured(session: Session) -> Measured:
    steps: list[None] = []
    return Measured(measure_group(session, BATCH, lambda: steps.append(None)), len(steps))


def test_there_is_a_cell_for_every_k(session: Session, measured: Measured) -> None:
    assert tuple(measured.cells) == KS
    for k, cell in measured.cells.items():
        assert (cell.status, cell.mode, cell.scope) == (Status.OK, Mode.EAGER, Scope.EAGER)
        assert (cell.batch_size, cell.context_len) == (BATCH, CONTEXT_LEN)
        assert cell.bucket is None and cell.padding_frac is None
        assert cell.head == ("mimo" if k else "none")
        assert cell.model == session.deployment.model.label


def test_progress_ends_where_it_said_it_would(session: Session, measured: Measured) -> None:
    assert measured.steps == num_steps(session, BATCH) == 3 + MIN_BLOCKS + 1


def test_a_cells_floor_is_of_the_lengths_that_were_timed(
    session: Session, measured: Measured
) -> None:
    for account in measured.group.accounts:
        k = account.spec_tokens
        assert CONTEXT_LEN < account.context_len < CONTEXT_LEN + session.options.band
        floor_s = session.floor.seconds(Batch(BATCH, k, account.context_len))
        assert measured.cells[k].floor_ms == pytest.approx(floor_s * 1e3)
        assert sum(line.seconds for line in account.lines) == pytest.approx(floor_s)
    assert [account.spec_tokens for account in measured.group.accounts] == list(KS)


def test_every_stage_has_its_samples(measured: Measured) -> None:
    counts = Counter((s.spec_tokens, str(s.stage)) for s in measured.group.samples)
    stages = {(k, stage): STAGE_ITERATIONS for k in KS for stage in STAGES[k]}
    assert {key: count for key, count in counts.items() if key[1] != "iteration"} == stages
    assert {k for k in KS if counts[k, "iteration"]} == set(KS)


def test_blocks_are_as_long_as_each_other_and_iterations_numbered_over_them(
    measured: Measured,
) -> None:
    for k in KS:
        samples = [s for s in measured.group.samples if s.spec_tokens == k]
        timed = [(s.block, s.iteration) for s in samples if s.stage == Stage.ITERATION]
        assert [iteration for _, iteration in timed] == list(range(len(timed)))
        blocks = Counter(block for block, _ in timed)
        assert list(blocks) == list(range(MIN_BLOCKS)) and len(set(blocks.values())) == 1
        assert k or blocks[0] == ITERATIONS
        for stage in STAGES[k]:
            numbers = [s.iteration for s in samples if str(s.stage) == stage]
            assert numbers == list(range(STAGE_ITERATIONS))


def test_on_a_cpu_both_clocks_are_the_wall_clock(measured: Measured) -> None:
    assert all(s.gpu_s == s.wall_s > 0 for s in measured.group.samples)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("num_untimed", [1, 2])
def test_every_k_has_the_same_mean_context(
    session: Session, num_untimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the table says, and as the iterations that were timed saw it; on CUDA one more follows."""
    seen: dict[int, list[float]] = {k: [] for k in KS}
    real = rounds.time_iterations

    def time_iterations(runner: EagerRunner, *args: Any) -> list[clock.IterationTime]:
        step = runner.step
        lengths: list[float] = []

        def noted(batch_size: int) -> None:
            lengths.append(float(runner.state.rows(batch_size).seq_len.double().mean()))
            step(batch_size)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "step", noted)
            times = real(runner, *args)
        seen[runner.state.spec_tokens] += lengths[1:]  # the first is not timed
        for _ in range(1, num_untimed):
            runner.step(BATCH)
        return times

    monkeypatch.setattr(rounds, "time_iterations", time_iterations)
    monkeypatch.setattr(rounds, "num_untimed", lambda device: num_untimed)
    for cell in measure_group(session, BATCH, lambda: None).cells:
        k = cell.spec_tokens
        # At k = 0 it grows by one an iteration, at others by as much in the mean.
        assert cell.mean_context_len == pytest.approx(fmean(seen[k]), abs=k / 2 + 1e-9)
        assert fmean(seen[k]) == pytest.approx(CONTEXT_LEN + (ITERATIONS + 1) / 2, abs=(k + 1) / 2)


@pytest.mark.usefixtures("few")
def test_timed_requests_never_leave_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request of eight keeps every draft and the others none: it is far ahead of the mean, and
    without the cut would write to its neighbour's rows."""
    session = make_session(make_bigram(tmp_path, set()), iterations=28, batch_size=8)
    longest: dict[int, Tensor] = {}
    is_timed = False

    def begin_timed(*args: Any) -> None:
        nonlocal is_timed
        is_timed = True
        begin(*args)

    begin = rounds.begin_timed
    monkeypatch.setattr(rounds, "begin_timed", begin_timed)

    def iteration(spec: Speculator, rows: RowState, *mark: Any) -> None:
        before = rows.seq_len.clone()
        real_iteration(spec, rows, *mark)
        if is_timed:
            rows.seq_len[1:] = torch.minimum(rows.seq_len, before + 1)[1:]
            so_far = longest.get(rows.spec_tokens, rows.seq_len)
            longest[rows.spec_tokens] = torch.maximum(so_far, rows.seq_len)

    monkeypatch.setattr(runner, "iteration", iteration)
    monkeypatch.setattr(clock, "iteration", iteration)
    measure_group(session, 8, lambda: None)
    assert longest[3][0] > CONTEXT_LEN + 1.5 * session.options.band
    assert longest[3][0] + 2 * 3 <= session.spec.cache.room
    assert longest[3][1:].max() < CONTEXT_LEN + session.options.band


def test_tokens_are_the_bigram_chains_and_their_hash_is_written(measured: Measured) -> None:
    expected = [chain(prompt) for prompt in PROMPTS]
    for k in KS:
        rows = [row for row in measured.group.tokens if row.spec_tokens == k]
        assert [row.token_ids for row in rows] == expected
        assert [tuple(row.prompt_ids) for row in rows] == list(PROMPTS)
        assert [row.request for row in rows] == list(range(len(PROMPTS)))
        assert measured.cells[k].tokens_sha256 == sha256_of(expected)


def chain(prompt: tuple[int, ...]) -> list[int]:
    tokens = [SUCCESSOR[prompt[-1]]]
    while len(tokens) < MAX_NEW_TOKENS:
        tokens.append(SUCCESSOR[tokens[-1]])
    return tokens


def accepted_by_hand(prompt: tuple[int, ...], k: int) -> list[int]:
    """Drafts kept by each iteration: those before the first that follows a misread token."""
    counts = []
    last, emitted = SUCCESSOR[prompt[-1]], 1
    while emitted < MAX_NEW_TOKENS:
        kept = 0
        while kept < k and last not in WRONG_AFTER:
            last, kept = SUCCESSOR[last], kept + 1
        last = SUCCESSOR[last]  # the bonus or recovered token
        emitted += kept + 1
        counts.append(kept)
    return counts


@pytest.mark.parametrize("k", KS)
def test_acceptance_is_what_the_tokens_say(measured: Measured, k: int) -> None:
    counts = [count for prompt in PROMPTS for count in accepted_by_hand(prompt, k)]
    per_pos = tuple(sum(count > position for count in counts) for position in range(k))
    cell = measured.cells[k]
    assert (cell.num_drafted, cell.num_accepted_per_pos) == (len(counts), per_pos)
    if k == 3:
        assert {0, 3} < set(counts)  # the head errs often enough to tell


def oom_at(k: int, call: int, real: Callable[..., Generated]) -> Callable[..., Generated]:
    """Out of memory in the ``call``-th wave that is generated with k drafts."""
    calls = Counter[int]()

    def generate(runner: Runner, first_tokens: list[int]) -> Generated:
        calls[runner.state.spec_tokens] += 1
        if runner.state.spec_tokens == k and calls[k] == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(runner, first_tokens)

    return generate


def without_memory(session: Session, wave: int) -> Measured:
    """A group whose cell of three drafts fails in the ``wave``-th wave."""
    steps: list[None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "generate", oom_at(3, wave, group.generate))
        return Measured(measure_group(session, BATCH, lambda: steps.append(None)), len(steps))


@pytest.fixture(scope="module")
def oom(session: Session) -> Measured:
    return without_memory(session, wave=1)


def test_a_cell_out_of_memory_has_no_results(oom: Measured) -> None:
    cell = oom.cells[3]
    assert cell.status is Status.OOM
    assert cell.tokens_sha256 is None and cell.peak_memory_bytes is None
    assert cell.floor_ms is None and {a.spec_tokens for a in oom.group.accounts} == {0, 1}
    assert (cell.num_drafted, cell.num_accepted_per_pos) == (0, (0, 0, 0))
    assert {s.spec_tokens for s in oom.group.samples} == {0, 1}
    assert {row.spec_tokens for row in oom.group.tokens} == {0, 1}


def test_the_other_cells_are_measured_as_ever(measured: Measured, oom: Measured) -> None:
    for k in (0, 1):
        assert oom.cells[k].status is Status.OK
        assert oom.cells[k].tokens_sha256 == measured.cells[k].tokens_sha256
        assert oom.cells[k].num_accepted_per_pos == measured.cells[k].num_accepted_per_pos
    kept = Counter((s.spec_tokens, str(s.stage)) for s in oom.group.samples)
    assert kept == Counter(
        (s.spec_tokens, str(s.stage)) for s in measured.group.samples if s.spec_tokens != 3
    )
    assert oom.steps == measured.steps


@pytest.mark.usefixtures("few")
def test_a_cell_out_of_memory_in_a_later_wave_counts_no_acceptance(session: Session) -> None:
    """``schema.Cell``: "A cell that ran out of memory has zeros there"."""
    cell = without_memory(session, wave=3).cells[3]
    assert cell.status is Status.OOM
    assert (cell.num_drafted, cell.num_accepted_per_pos) == (0, (0, 0, 0))


def test_out_of_memory_while_timing_drops_the_samples_taken_before(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[int]()
    real = EagerRunner.step

    def step(self: EagerRunner, batch_size: int) -> None:
        k = self.state.spec_tokens
        calls[k] += bool(self.state.full.tokens_left.max() > MAX_NEW_TOKENS)
        if k == 1 and calls[k] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, batch_size)

    monkeypatch.setattr(EagerRunner, "step", step)
    result = measure_group(session, BATCH, lambda: None)
    assert {cell.spec_tokens: cell.status for cell in result.cells} == {
        0: Status.OK,
        1: Status.OOM,
        3: Status.OK,
    }
    assert {s.spec_tokens for s in result.samples} == {0, 3}


@pytest.mark.usefixtures("few")
def test_a_group_with_no_cell_left_is_still_a_table(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*_: object) -> Generated:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(group, "generate", generate)
    result = measure_group(session, BATCH, lambda: None)
    frame = latency_frame(result.cells, samples_frame(result.samples))
    assert frame["status"].tolist() == ["oom"] * 3
    assert frame[["iteration_p50_ms", "verify_p50_ms", "speedup_vs_no_spec"]].isna().all(axis=None)


@pytest.mark.usefixtures("few")
def test_tokens_are_held_once_against_a_prefill_and_its_memory_is_named(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[tuple[int, ...]]()

    def prefill_failure(spec: object, prompt: object, tokens: tuple[int, ...]) -> None:
        calls[tokens] += 1

    monkeypatch.setattr(group, "prefill_failure", prefill_failure)
    measure_group(session, BATCH, lambda: None)
    assert list(calls.values()) == [1]

    def no_memory(*_: object) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(group, "prefill_failure", no_memory)
    with pytest.raises(OutOfMemoryError, match=r"short audit of tokens: lower --max-num-b"):
        measure_group(session, BATCH, lambda: None)


def corrupt(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """The first token that an iteration of k drafts emits for row 1 is another one."""
    real = EagerRunner.step

    def step(self: EagerRunner, batch_size: int) -> None:
        real(self, batch_size)
        if self.state.spec_tokens == k:
            self.state.full.out[1, 0] = (self.state.full.out[1, 0] + 1) % VOCAB

    monkeypatch.setattr(EagerRunner, "step", step)


@pytest.mark.usefixtures("few")
def test_a_cell_with_a_wrong_token_has_no_latency(
    session: Session, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speculation must give plain decoding's tokens: k = 3 does not, and only k = 3 is told."""
    corrupt(monkeypatch, 3)
    result = measure_group(session, BATCH, lambda: None)
    cells = {cell.spec_tokens: cell for cell in result.cells}
    assert {k: cell.status for k, cell in cells.items()} == {
        0: Status.OK,
        1: Status.OK,
        3: Status.AUDIT_FAILED,
    }
    assert {s.spec_tokens for s in result.samples} == {0, 1}
    assert {row.spec_tokens for row in result.tokens} == {0, 1}
    assert cells[3].tokens_sha256 is None and cells[3].num_drafted == 0
    assert cells[1].tokens_sha256 == measured.cells[1].tokens_sha256
    (failure,) = result.failures
    right = chain(PROMPTS[1])[1]
    assert failure == (
        f"eager k=3, batch size {BATCH}: tokens differ from eager k=0's: "
        f"request 1, token 1: {(right + 1) % VOCAB}, not {right}"
    )
    frame = latency_frame(result.cells, samples_frame(result.samples)).set_index("spec_tokens")
    empty = ["iteration_p50_ms", "tpot_ms", "output_tok_per_s", "mean_acceptance_length"]
    empty += ["speedup_vs_eager", "speedup_vs_no_spec", "peak_memory_bytes", "verify_p50_ms"]
    assert frame.loc[3, empty].isna().all()
    assert frame.loc[[0, 1], empty].drop(columns="verify_p50_ms").notna().all(axis=None)


def test_speedups_over_a_failed_cell_are_empty(measured: Measured) -> None:
    """Plain decoding failed: there is nothing to be faster than."""
    result = measured.group
    failed = [
        replace(cell, status=Status.AUDIT_FAILED) if not cell.spec_tokens else cell
        for cell in result.cells
    ]
    kept = [sample for sample in result.samples if sample.spec_tokens]
    frame = latency_frame(failed, samples_frame(kept)).set_index("spec_tokens")
    assert frame["speedup_vs_no_spec"].isna().all()
    assert frame.loc[[1, 3], "speedup_vs_eager"].tolist() == [1.0, 1.0]


def test_a_session_without_a_fault_fails_nothing(measured: Measured) -> None:
    assert measured.group.failures == []


class WrongDrafts(EagerRunner):
    """Stands for graphs whose last draft is another one: tokens stay right, acceptance falls."""

    scope = Scope.ITERATION

    def mode(self, batch_size: int) -> Mode:
        return Mode.GRAPH

    def step(self, batch_size: int) -> None:
        super().step(batch_size)
        last = self.state.full.drafts[0, -1]
        last.copy_((last + 1) % VOCAB)


@pytest.mark.usefixtures("few")
def test_a_graph_cell_with_wrong_drafts_has_no_latency(session: Session) -> None:
    graphs: Any = SimpleNamespace(num_bytes=0)
    runner = WrongDrafts(session.spec, session.deployment.states[3])
    key = (3, Scope.ITERATION)
    runners = {**session.deployment.runners, key: runner}
    deployment = replace(session.deployment, runners=runners, graph_sets={key: graphs})
    result = measure_group(replace(session, deployment=deployment), BATCH, lambda: None)
    statuses = {(cell.spec_tokens, cell.scope): cell.status for cell in result.cells}
    assert statuses.pop(key) is Status.AUDIT_FAILED
    assert set(statuses.values()) == {Status.OK}
    (failure,) = result.failures
    start = "iteration k=3, batch size 2: a replay is not eager's iteration: step 1, row 0: draft 3"
    assert failure.startswith(start)
    assert {s.scope for s in result.samples} == {Scope.EAGER}
