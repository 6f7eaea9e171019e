"""Synthetic acceptance: the rates asked for, drawn per request and per position."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cgbench.engine.acceptance import AcceptanceRule, AtLength, Synthetic
from cgbench.engine.generation import Generated, generate
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.engine.state import DecodeState
from cgbench.kernels.row_updates import RowState
from cgbench.request.acceptance_lengths import GOLDEN, GoldenLength, Length, StatedLength
from tests.support.tiny import (
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)

RATES = (0.85, 0.6, 0.4)
BATCH, VOCAB, ROUNDS = 64, 8, 3000


def make_rows(k: int, batch: int = BATCH) -> RowState:
    state = DecodeState(
        spec_tokens=k,
        max_batch_size=batch,
        scratch_slot=batch,
        hidden_size=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    state.full.slot_of_row.copy_(torch.randperm(batch))
    state.full.drafts.fill_(VOCAB)  # no argmax is ever this one
    return state.full


def accepted(rule: AcceptanceRule, k: int, rounds: int = 50) -> torch.Tensor:
    """``[rounds, batch]`` accepted counts, ``ROUNDS`` times ``BATCH`` in all.

    Few rounds of many requests take far less time.
    """
    torch.manual_seed(0)
    batch = BATCH * ROUNDS // rounds
    rows = make_rows(k, batch)
    logits = torch.randn(batch, k + 1, VOCAB)
    counts = []
    for _ in range(rounds):
        rows.uniforms.uniform_()
        rule(rows, logits)
        counts.append(rows.num_accepted.clone())
    return torch.stack(counts)


def test_rates_are_met_within_one_percent() -> None:
    counts = accepted(Synthetic(RATES), 3)
    for position, rate in enumerate(RATES):
        assert (counts > position).double().mean().item() == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("k", [1, 3, 5, 8])
@pytest.mark.parametrize(
    "length", [GoldenLength(row) for row in GOLDEN.values()] + [StatedLength(1.5)], ids=str
)
def test_a_stated_length_is_met_at_every_k(length: Length, k: int) -> None:
    """By one rate for every draft, given that the one before it was kept."""
    counts = accepted(AtLength(length), k)
    expected = length.at(k)
    assert expected is not None
    assert 1 + counts.double().mean().item() == pytest.approx(expected, rel=0.01)
    reached = [(counts >= position).sum().item() for position in range(k + 1)]
    rates = [after / before for before, after in pairwise(reached) if before > 20_000]
    assert rates == pytest.approx([rates[0]] * len(rates), abs=0.02)


@pytest.mark.parametrize(("length", "expected"), [(1.0, 0), (4.0, 3)])
def test_lengths_at_the_ends_are_certain(length: float, expected: int) -> None:
    assert (accepted(AtLength(StatedLength(length)), 3) == expected).all()


def test_requests_are_independent() -> None:
    """No pair of requests, and no request with itself an iteration later, is correlated."""
    kept = (accepted(Synthetic(RATES), 3, ROUNDS) > 0).double()
    between = torch.corrcoef(kept.T) - torch.eye(BATCH)
    later = torch.corrcoef(torch.stack([kept[:-1].flatten(), kept[1:].flatten()]))[0, 1]
    # 2,016 pairs of 3,000 draws: five standard deviations are 0.09.
    assert between.abs().max() < 0.09
    assert later.abs() < 0.012


@pytest.mark.parametrize(("rates", "expected"), [((1.0, 1.0), 2), ((0.0, 0.0), 0), ((1.0, 0.0), 1)])
def test_certain_rates_are_certain(rates: tuple[float, ...], expected: int) -> None:
    assert (accepted(Synthetic(rates), 2) == expected).all()


def test_drafts_come_first_and_the_targets_token_after_them() -> None:
    rows = make_rows(3)
    logits = torch.randn(BATCH, 4, VOCAB)
    rows.uniforms.uniform_()
    Synthetic(RATES)(rows, logits)
    for out, count, argmax in zip(rows.out, rows.num_accepted, logits.argmax(-1), strict=True):
        assert (out[:count] == VOCAB).all()
        assert out[count] == argmax[count]


def decode(folder: Path, batch_size: int) -> Generated:
    spec = make_speculator(load_tiny(folder), max_batch_size=8, room=80, accept=Synthetic(RATES))
    state = make_state(spec, 3, 8)
    prefilled = prefill(spec, random_prompts(8)[:batch_size], max_num_tokens=100)
    begin_decoding(spec, state, prefilled, tokens_left=39, seed=7)
    return generate(EagerRunner(spec, state), prefilled.last.tolist())


def test_draws_do_not_depend_on_neighbours(tmp_path: Path) -> None:
    """Requests end at different times, so rows are re-packed too."""
    folder = make_checkpoint(tmp_path, "mimo", seed=3)
    five, eight = decode(folder, 5), decode(folder, 8)
    assert five.accepted == eight.accepted[:5]
    assert five.token_ids == eight.token_ids[:5]
    assert len({len(counts) for counts in eight.accepted}) > 1
