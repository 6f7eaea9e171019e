"""Check that whatever lies in padded rows, in the scratch slot and past a request's length stays
there.

Padded rows are poisoned with NaN hidden states and the last token of the vocabulary. The scratch
slot is NaN or huge. Live slots are huge past their committed length. They are finite there, because
a masked NaN is still NaN in a matrix product.

Real rows must not change by a bit. If experts are grouped, they must not change by more than
rounding. Every iteration starts from the same state twice, clean and poisoned, because rows past
num_accepted are stale by design.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from cgbench.checks.findings import Difference, Finding
from cgbench.checks.hidden import allowed_error
from cgbench.checks.hints import Hints
from cgbench.checks.poison import fill_cache, fill_scratch, poison_rows
from cgbench.checks.reference import relative_error
from cgbench.checks.states import States, copy_states, fill_unread, unequal_state
from cgbench.checks.steps import (
    STEPS,
    Snapshot,
    begin,
    by_slot,
    committed_rows,
    conclude,
    copy_watched,
    fill_remade,
    fill_where,
    first_rows,
    first_unequal,
    head_layers,
    padded_runners,
    prefill_prompts,
    restore,
    rows_past,
    snapshot,
    tile,
    unequal_kv,
    where_of,
)
from cgbench.checks.subject import Subject
from cgbench.engine.runner import Runner

NAME = "padding"
TITLE = "poison in padded rows, scratch and stale KV reaches no real row"

HUGE = 1e4
POISONS = {"NaN": math.nan, "1e4": HUGE}
LACKING = "no batch size is padded: see --capture-sizes. Scratch and stale KV reached no real row"
TOKENS = ("result", "drafts", "last", "seq_len", "tokens_left", "active")
COMPARED = (*TOKENS, "hidden", "chain")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """This is what an iteration left: row state, and the watched KV and recurrent state."""

    buffers: Snapshot
    kv: dict[tuple[int, str], Tensor]
    states: States


def run(subject: Subject) -> Finding:
    """Compare clean and poisoned iterations of every runner that pads, and return the finding."""
    figures = {"iterations": 0, "padded_rows": 0}
    lacking = None if subject.has_padding else LACKING
    try:
        return conclude(subject, NAME, _differences(subject, figures), figures, lacking)
    finally:
        _clean(subject)


def _clean(subject: Subject) -> None:
    """Remove the poison, because nothing after this check may meet any."""
    fill_cache(subject.spec.cache, 0.0)
    for state in subject.states.values():
        state.clear()
        state.full.hidden.zero_()
        state.full.chain.zero_()
        state.full.fed.zero_()
        state.full.carries.zero_()


def _differences(subject: Subject, figures: dict[str, int]) -> Iterator[Difference]:
    largest = max(subject.largest(k) for k in subject.states)
    prefilled = prefill_prompts(subject, tile(subject.prompts, largest))
    for k in subject.states:
        for runner in padded_runners(subject, k):
            for batch_size in subject.edge_sizes(k):
                begin(subject, runner.state, first_rows(prefilled, batch_size))
                hints = Hints(subject, runner.state)
                for _ in range(STEPS):
                    hints.write(batch_size)
                    figures["iterations"] += 1
                    figures["padded_rows"] += runner.num_rows(batch_size) - batch_size
                    yield from _iteration(subject, runner, batch_size)


def _iteration(subject: Subject, runner: Runner, batch_size: int) -> Iterator[Difference]:
    compare = _unequal if subject.is_batch_invariant else _far
    before = snapshot(runner.state)
    runner.step(batch_size)
    clean = _Outcome(
        snapshot(runner.state),
        copy_watched(subject, runner.state.spec_tokens),
        copy_states(subject),
    )
    for name, value in POISONS.items():
        restore(runner.state, before)
        poison(subject, runner, batch_size, value)
        poisoned = snapshot(runner.state)
        runner.step(batch_size)
        found = compare(subject, runner, batch_size, clean)
        if found is not None:
            text = f"{found[0]} changed under {name} poison"
            yield Difference(text, where_of(runner, batch_size, found[1]), inputs=poisoned)


def poison(subject: Subject, runner: Runner, batch_size: int, value: float) -> None:
    """Poison everything that a real row must not read, before an iteration."""
    state = runner.state
    padded = slice(batch_size, runner.num_rows(batch_size))
    poison_rows(state, padded, subject.spec.target.last_token)
    fill_where(subject, rows_past(subject, state.rows(batch_size)), HUGE)
    fill_remade(subject, state.rows(batch_size), HUGE)
    fill_unread(subject.spec.cache.recurrent, state.rows(batch_size), HUGE)
    fill_scratch(subject.spec.cache, value)


def _unequal(
    subject: Subject, runner: Runner, batch_size: int, clean: _Outcome
) -> tuple[str, int] | None:
    """Return the part of the real rows that differs from the clean iteration by a bit, and its row.
    Return None if none does.
    """
    state = runner.state
    unequal = first_unequal(snapshot(state), clean.buffers, batch_size, COMPARED)
    if unequal is not None:
        return unequal
    rows = state.rows(batch_size)
    slots, committed = rows.slot_of_row.tolist(), committed_rows(subject, rows)
    kv = unequal_kv(subject, clean.kv, committed)
    if kv is not None:
        return f"KV of layer {kv[0]} at position {kv[2]}", slots.index(kv[1])
    recurrent = unequal_state(subject, clean.states, committed.any(1))
    if recurrent is not None:
        return f"recurrent state of layer {recurrent[0]}", slots.index(recurrent[1])
    return None


def _far(
    subject: Subject, runner: Runner, batch_size: int, clean: _Outcome
) -> tuple[str, int] | None:
    """Return the part of the real rows that is further from the clean iteration than rounding, and
    its row. Return None if none is.

    Tokens count in float32 alone. Verify's hidden states and KV always count, because all of it
    comes from the same tokens.
    """
    state = runner.state
    if subject.is_exact and (
        unequal := first_unequal(snapshot(state), clean.buffers, batch_size, TOKENS)
    ):
        return unequal
    for row in range(batch_size):
        for name, (ours, theirs) in _verified(subject, runner, row, clean).items():
            # Not "error >": a NaN is wrong too.
            if not relative_error(ours, theirs) <= allowed_error(subject):
                return name, row
    return None


def _verified(
    subject: Subject, runner: Runner, row: int, clean: _Outcome
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return pairs of row ``row``, now and clean: committed KV and state of the target and, with
    drafts, hidden states.
    """
    rows = runner.state.full
    slot, length = int(rows.slot_of_row[row]), int(rows.seq_len[row])
    pairs = {
        f"KV of layer {layer}": (
            by_slot(subject, layer)[kind][slot, :length],
            old[slot, :length],
        )
        for (layer, kind), old in clean.kv.items()
        if layer not in head_layers(subject)
    }
    if (recurrent := subject.spec.cache.recurrent) is not None:
        pairs |= {
            f"recurrent state of layer {layer}": (recurrent.layers[layer].matrix[slot], old[slot])
            for (layer, _), old in clean.states.items()
        }
    if rows.spec_tokens:
        pairs["hidden"] = rows.hidden[row], clean.buffers["hidden"][row]
    return pairs
