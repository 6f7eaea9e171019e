"""The short audit on a CPU: runners that stand for graphs, right ones and ones with a fault."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cgbench.checks import short
from cgbench.checks.short import (
    StepAudit,
    first_difference,
    first_step_difference,
    prefill_failure,
    token_failure,
)
from cgbench.engine.acceptance import Greedy, Synthetic
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import prefill
from cgbench.engine.runner import EagerRunner
from cgbench.engine.state import DecodeState
from cgbench.kernels.row_updates import OUT, RowState
from tests.support.tiny import (
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

MAX_BATCH = 8
BATCH, BUCKET = 3, 4
K = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), "mimo", seed=3)


@pytest.fixture(params=[Greedy(), Synthetic((0.8, 0.6, 0.4))], ids=["greedy", "synthetic"])
def spec(request: pytest.FixtureRequest, checkpoint: Path) -> Speculator:
    model = load_tiny(checkpoint)
    return make_speculator(model, max_batch_size=MAX_BATCH, room=64, accept=request.param)


Fault = Callable[[RowState], None]


class Padded(EagerRunner):
    """Stands for a graph of ``rows`` rows, in which ``fault`` happens after ``step_number`` - 1."""

    def __init__(
        self, spec: Speculator, state: DecodeState, fault: Fault, rows: int = BUCKET, step: int = 1
    ) -> None:
        super().__init__(spec, state)
        self.fault, self.rows, self.faulty_step = fault, rows, step
        self.steps = 0

    def num_rows(self, batch_size: int) -> int:
        return BUCKET

    def step(self, batch_size: int) -> None:
        self.steps += 1
        iteration(self.spec, self.state.rows(self.rows))
        if self.steps == self.faulty_step:
            self.fault(self.state.rows(batch_size))


def nothing(_: RowState) -> None:
    """No fault."""


def step_audit(spec: Speculator) -> StepAudit:
    return StepAudit(spec, lambda: prefill(spec, random_prompts(BATCH), 512), seed=5)


def audited(
    spec: Speculator, fault: Fault, k: int = K, rows: int = BUCKET, step: int = 1
) -> str | None:
    return step_audit(spec).failure(Padded(spec, make_state(spec, k, MAX_BATCH), fault, rows, step))


@pytest.mark.parametrize("k", [0, 1, K])
def test_the_same_iteration_over_poisoned_padding_is_the_same(spec: Speculator, k: int) -> None:
    assert audited(spec, nothing, k) is None


def test_the_poison_is_gone_after(spec: Speculator) -> None:
    audited(spec, nothing)
    tensors = [t for kv in spec.cache.layers.values() for t in (kv.keys, kv.values)]
    assert all(tensor.isfinite().all() for tensor in tensors)


def add_to(column: int, row: int = 1) -> Fault:
    def fault(rows: RowState) -> None:
        rows.result[row, column] += 1

    return fault


@pytest.mark.parametrize(
    ("column", "name"),
    [(0, "num_emitted"), (1, "num_accepted"), (2, "active"), (OUT, "out[0]"), (OUT + K, "out[3]")],
)
def test_a_wrong_result_is_told_with_step_row_and_value(
    spec: Speculator, column: int, name: str
) -> None:
    failure = audited(spec, add_to(column), step=2)
    assert failure is not None and failure.startswith(f"step 2, row 1: {name} is ")


def test_a_wrong_draft_is_told_though_the_tokens_stay_right(spec: Speculator) -> None:
    def fault(rows: RowState) -> None:
        rows.drafts[2, K - 1] = (rows.drafts[2, K - 1] + 1) % 64

    assert (audited(spec, fault) or "").startswith("step 1, row 2: draft 3 is ")


@pytest.mark.parametrize(
    ("rows", "words"), [(8, "row 4 was computed too"), (2, "row 2 was not computed")]
)
def test_another_bucket_replayed_is_told(spec: Speculator, rows: int, words: str) -> None:
    assert words in (audited(spec, nothing, rows=rows) or "")


def test_a_padded_rows_leak_is_told(spec: Speculator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last real row reads the padded row's hidden state, as after a wrong stride."""

    class Leaks(Padded):
        def step(self, batch_size: int) -> None:
            with monkeypatch.context() as patch:
                patch.setattr("cgbench.engine.iteration.draft_first", leaking)
                iteration(self.spec, self.state.rows(BUCKET))

    from cgbench.engine import iteration as module

    real = module.draft_first

    def leaking(spec: Speculator, rows: RowState) -> None:
        rows.hidden[BATCH - 1] = rows.hidden[BUCKET - 1]
        real(spec, rows)

    runner = Leaks(spec, make_state(spec, K, MAX_BATCH), nothing)
    audit = step_audit(spec)
    failure = audit.failure(runner)
    assert failure is not None and f"row {BATCH - 1}: draft" in failure
    # What the fault wrote into live slots is gone: the next cell is judged on its own.
    assert audit.failure(Padded(spec, make_state(spec, K, MAX_BATCH), nothing)) is None


def test_where_eager_is_not_equal_to_itself_nothing_is_said(
    spec: Speculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []

    def unstable(spec: Speculator, rows: RowState) -> None:
        iteration(spec, rows)
        calls.append(None)
        rows.drafts[0, 0] = len(calls)

    monkeypatch.setattr(short, "iteration", unstable)
    assert audited(spec, nothing) is None
    assert len(calls) == 2 * short.STEPS


def test_the_eager_side_is_run_once_for_all_scopes(
    spec: Speculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []

    def counted(spec: Speculator, rows: RowState) -> None:
        calls.append(None)
        iteration(spec, rows)

    monkeypatch.setattr(short, "iteration", counted)
    audit = step_audit(spec)
    state = make_state(spec, K, MAX_BATCH)
    assert [audit.failure(Padded(spec, state, nothing)) for _ in range(2)] == [None, None]
    assert len(calls) == 2 * short.STEPS  # twice, to know that eager is equal to itself


@pytest.mark.parametrize(
    ("expected", "got", "position"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 5, 3], 1),
        ([1, 2, 3], [1, 2], 2),
        ([1], [1, 2], 1),
        ([], [], None),
    ],
)
def test_first_difference(expected: list[int], got: list[int], position: int | None) -> None:
    assert first_difference(expected, got) == position


def test_first_step_difference_is_the_earliest_step_and_row() -> None:
    ours = [torch.zeros(2, 5, dtype=torch.long) for _ in range(3)]  # k = 1: 3 + 2 columns, no draft
    its = [each.clone() for each in ours]
    assert first_step_difference(ours, its, 1) is None
    its[2][0, 0] = its[1][1, 3] = 9
    assert first_step_difference(ours, its, 1) == "step 2, row 1: out[0] is 9, eager's is 0"


PROMPTS = random_prompts(3)


def test_plain_tokens_pass_and_a_wrong_one_is_told(checkpoint: Path) -> None:
    spec = make_speculator(load_tiny(checkpoint), max_batch_size=1, room=64)
    plain = greedy_reference(reference_model(checkpoint), PROMPTS, 8)
    assert token_failure(spec, PROMPTS, plain, plain) is None
    got = [list(tokens) for tokens in plain]
    got[1][5] = (got[1][5] + 1) % 64
    expected = f"request 1, token 5: {got[1][5]}, not {plain[1][5]}"
    assert token_failure(spec, PROMPTS, plain, got) == expected
    got[1] = plain[1][:5]
    assert (
        token_failure(spec, PROMPTS, plain, got)
        == f"request 1, token 5: nothing, not {plain[1][5]}"
    )


def test_what_a_prefill_would_not_choose_is_told(checkpoint: Path) -> None:
    spec = make_speculator(load_tiny(checkpoint), max_batch_size=1, room=64)
    prompt = PROMPTS[0]
    (plain,) = greedy_reference(reference_model(checkpoint), [prompt], 8)
    assert prefill_failure(spec, prompt, plain) is None
    assert prefill_failure(spec, prompt, plain[:1]) is None
    got = [*plain[:5], (plain[5] + 1) % 64, *plain[6:]]
    told = f"request 0, token 5: {got[5]}, not {plain[5]}"
    assert prefill_failure(spec, prompt, got) == told


def test_only_a_tie_of_the_logits_excuses(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of the lm_head made the same: their tokens tie wherever one of them wins."""
    model = load_tiny(checkpoint)
    spec = make_speculator(model, max_batch_size=1, room=64)
    plain = greedy_reference(reference_model(checkpoint), PROMPTS, 8)
    token = plain[1][5]
    twin = next(t for t in range(64) if all(t not in tokens for tokens in plain))
    got = [list(tokens) for tokens in plain]
    got[1][5] = twin
    assert token_failure(spec, PROMPTS, plain, got) is not None
    assert prefill_failure(spec, PROMPTS[1], got[1][:6]) is not None
    with torch.no_grad():
        weight = model.target.model.get_output_embeddings().weight
        weight[twin] = weight[token] * (1 + 1e-7)
    assert token_failure(spec, PROMPTS, plain, got) is None
    assert prefill_failure(spec, PROMPTS[1], got[1][:6]) is None
