"""Marks that every computed row overwrites: a bucket too large or too small shows."""

from pathlib import Path

import pytest

from cgbench.checks.computed import bucket_fault
from cgbench.engine.iteration import (
    Speculator,
    draft_first_phase,
    draft_rest_phase,
    iteration,
    verify_phase,
)
from cgbench.engine.runner import EagerRunner
from cgbench.engine.state import DecodeState
from tests.support.dflash import FULL, make_drafter, make_target
from tests.support.tiny import load_tiny, make_checkpoint, make_speculator, make_state

MAX_BATCH = 8


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Speculator:
    folder = make_checkpoint(tmp_path_factory.mktemp("tiny"), "mimo")
    return make_speculator(load_tiny(folder), max_batch_size=MAX_BATCH, room=32)


class Computes(EagerRunner):
    """Computes ``rows`` rows, however many requests there are."""

    def __init__(self, spec: Speculator, state: DecodeState, rows: int) -> None:
        super().__init__(spec, state)
        self.rows = rows

    def step(self, batch_size: int) -> None:
        iteration(self.spec, self.state.rows(self.rows))


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (4, None),
        (8, "3 requests take the bucket of 4, but row 4 was computed too"),
        (2, "3 requests take the bucket of 4, but row 2 was not computed"),
    ],
)
def test_the_rows_computed_are_the_buckets(
    spec: Speculator, k: int, rows: int, fault: str | None
) -> None:
    runner = Computes(spec, make_state(spec, k, MAX_BATCH), rows)
    assert bucket_fault(spec, runner, 3, 4) == fault
    assert bucket_fault(spec, runner, 3, 4) == fault  # the marks of one call are gone at the next


@pytest.mark.parametrize(
    ("rows", "row"), [(4, None), (8, "row 4 was computed too"), (2, "row 2 was not computed")]
)
def test_a_parallel_drafter_writes_no_chain(rows: int, row: str | None, tmp_path: Path) -> None:
    target, head = make_target(tmp_path / "target"), make_drafter(tmp_path / "drafter", FULL)
    model = load_tiny(target, head=head)
    drafter = make_speculator(model, max_batch_size=MAX_BATCH, room=32)
    runner = Computes(drafter, make_state(drafter, 3, MAX_BATCH), rows)
    fault = bucket_fault(drafter, runner, 3, 4)
    assert fault == (row and f"3 requests take the bucket of 4, but {row}")


class WrongPhase(EagerRunner):
    """One of the three phases works on another bucket."""

    def __init__(self, spec: Speculator, state: DecodeState, sizes: tuple[int, int, int]) -> None:
        super().__init__(spec, state)
        self.sizes = sizes

    def step(self, batch_size: int) -> None:
        phases = (verify_phase, draft_first_phase, draft_rest_phase)
        for phase, rows in zip(phases, self.sizes, strict=True):
            phase(self.spec, self.state.rows(rows))


@pytest.mark.parametrize("sizes", [(8, 4, 4), (4, 8, 4), (4, 4, 8), (2, 4, 4), (4, 4, 2)])
def test_a_single_phase_with_another_bucket_shows(
    spec: Speculator, sizes: tuple[int, int, int]
) -> None:
    state = make_state(spec, 3, MAX_BATCH)
    assert bucket_fault(spec, WrongPhase(spec, state, (4, 4, 4)), 3, 4) is None
    assert bucket_fault(spec, WrongPhase(spec, state, sizes), 3, 4) is not None
