"""Check that a request's answer is its own: no neighbour, row, bucket or earlier tenant of its slot
shows.

The reverse is checked too. An iteration writes to its own requests' KV rows past their committed
length and to the scratch slot, and nowhere else. A finished request emits nothing and keeps its KV.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from cgbench.checks.findings import Difference, Finding
from cgbench.checks.hints import Hints
from cgbench.checks.poison import fill_cache
from cgbench.checks.states import States, copy_states, unequal_state
from cgbench.checks.steps import (
    STEPS,
    Prompts,
    Snapshot,
    begin,
    conclude,
    copy_watched,
    decode,
    first_unequal,
    padded_runners,
    prefill_prompts,
    snapshot,
    tile,
    unequal_kv,
    where_of,
    write_window,
)
from cgbench.checks.subject import Subject
from cgbench.checks.tokens import Judge
from cgbench.engine.runner import Runner
from cgbench.kernels.row_updates import RowState

NAME = "isolation"
TITLE = "a request's tokens and KV depend on nothing but itself"

# The value may be any that no forward writes.
SENTINEL = 0.5
LACKING = (
    "no two prompts decode together: see --max-num-seqs and --num-prompts. No earlier tenant of a "
    "slot shows"
)
COMPARED = ("result", "drafts", "last", "seq_len", "hidden", "chain")


def run(subject: Subject) -> Finding:
    """Decode requests among other neighbours, rows and tenants, and return the finding."""
    judge = Judge(subject)
    lacking = None if subject.has_neighbours else LACKING
    finding = conclude(subject, NAME, _differences(subject, judge), {}, lacking)
    return replace(finding, figures=judge.figures)


def _differences(subject: Subject, judge: Judge) -> Iterator[Difference]:
    for k in subject.states:
        for runner in padded_runners(subject, k):
            yield from _neighbours(subject, runner, judge)
            yield from _writes(subject, runner)
            yield from _reused_slots(subject, runner)


def _neighbours(subject: Subject, runner: Runner, judge: Judge) -> Iterator[Difference]:
    """Decode the same requests alone, in a batch, in other rows, and in another bucket."""
    largest = subject.largest(runner.state.spec_tokens)
    batch = min(largest, len(subject.prompts))
    prompts = tile(subject.prompts, batch)
    alone = [_tokens(subject, runner, [prompt])[0] for prompt in prompts]
    for order in _orders(batch, largest):
        got = _tokens(subject, runner, [prompts[i] for i in order])
        for row, i in enumerate(order):
            where = where_of(runner, len(order), row)
            found = judge.difference(prompts[i], alone[i], got[row], where)
            if found is not None:
                yield replace(found, text=f"{found.text}, as the request alone has it")


def _orders(batch: int, largest: int) -> list[list[int]]:
    """Return orders that assign requests to rows: as they come, reversed, rotated in half as large
    a batch, and repeated to fill the largest.
    """
    half = max(1, batch // 2)
    rotated = [(i + 1) % batch for i in range(half)]
    return [
        list(range(batch)),
        list(reversed(range(batch))),
        rotated,
        [i % batch for i in range(largest)],
    ]


def _tokens(subject: Subject, runner: Runner, prompts: Prompts) -> list[list[int]]:
    return decode(subject, runner, prefill_prompts(subject, prompts), subject.max_new_tokens)


def _writes(subject: Subject, runner: Runner) -> Iterator[Difference]:
    """Step a batch whose rows end one after the other, and check where it writes.

    The batch was re-packed before. So its rows do not have the slots of their own numbers, and its
    former last row is padding now.
    """
    k = runner.state.spec_tokens
    batch_size = subject.largest(k)
    fill_cache(subject.spec.cache, SENTINEL)
    untouched, states = copy_watched(subject, k), copy_states(subject, with_rings=True)
    begin(subject, runner.state, prefill_prompts(subject, tile(subject.prompts, batch_size)))
    others = torch.ones_like(write_window(subject, runner.state.rows(batch_size)))
    others[:batch_size] = False
    others[subject.spec.cache.scratch_slot] = False
    yield from _changed(subject, runner, batch_size, untouched, states, lambda _: others, "prefill")
    batch_size = max(1, batch_size - 1)
    runner.state.repack(list(reversed(range(batch_size))))
    rows = runner.state.rows(batch_size)
    rows.tokens_left.copy_(1 + torch.arange(batch_size) % (2 * k + 3))
    hints = Hints(subject, runner.state)
    for _ in range(3 + STEPS):
        hints.write(batch_size)
        yield from _step(subject, runner, rows)


def _step(subject: Subject, runner: Runner, rows: RowState) -> Iterator[Difference]:
    state, batch_size = runner.state, rows.batch_size
    before, kv = snapshot(state), copy_watched(subject, state.spec_tokens)
    states = copy_states(subject, with_rings=True)
    # Of every layer before the step, which changes the lengths that windows are made of.
    numbers = {0, *subject.spec.cache.layers}
    forbidden = {number: ~write_window(subject, rows, number) for number in numbers}
    runner.step(batch_size)
    yield from _changed(
        subject, runner, batch_size, kv, states, forbidden.__getitem__, "an iteration"
    )
    finished = before["active"][:batch_size] == 0
    moved = (rows.num_emitted != 0) | (rows.seq_len != before["seq_len"][:batch_size])
    moved |= rows.active != 0
    if (finished & moved).any():
        row = int((finished & moved).nonzero()[0, 0])
        text = f"a finished request emitted {int(rows.num_emitted[row])} tokens"
        yield Difference(text, where_of(runner, batch_size, row), inputs=before)


def _changed(
    subject: Subject,
    runner: Runner,
    batch_size: int,
    kv: dict[tuple[int, str], torch.Tensor],
    states: States,
    forbidden: Callable[[int], torch.Tensor],
    who: str,
) -> Iterator[Difference]:
    found = unequal_kv(subject, kv, forbidden)
    if found is not None:
        layer_idx, slot, position = found
        text = f"{who} wrote to KV slot {slot} at position {position}, layer {layer_idx}"
        yield Difference(text, where_of(runner, batch_size), inputs=snapshot(runner.state))
    recurrent = unequal_state(subject, states, forbidden(0).all(1))
    if recurrent is not None:
        text = f"{who} wrote to the recurrent state of slot {recurrent[1]}, layer {recurrent[0]}"
        yield Difference(text, where_of(runner, batch_size), inputs=snapshot(runner.state))


def _reused_slots(subject: Subject, runner: Runner) -> Iterator[Difference]:
    """Decode short requests on a zeroed cache, and again in slots of longer ones. They must be
    equal bit for bit.
    """
    batch_size = max(1, subject.largest(runner.state.spec_tokens) - 1)
    first = tile(subject.prompts, batch_size)
    second = [prompt[: (len(prompt) + 1) // 2] for prompt in reversed(first)]
    fill_cache(subject.spec.cache, 0.0)
    fresh = _steps(subject, runner, second)
    _tokens(subject, runner, first)
    for step, (got, expected) in enumerate(
        zip(_steps(subject, runner, second), fresh, strict=True)
    ):
        unequal = first_unequal(got, expected, batch_size, COMPARED)
        if unequal is not None:
            text = f"{unequal[0]} after step {step + 1} shows an earlier request of the slot"
            yield Difference(text, where_of(runner, batch_size, unequal[1]), inputs=expected)


def _steps(subject: Subject, runner: Runner, prompts: Prompts) -> list[Snapshot]:
    """Return the states after each of a few steps."""
    begin(subject, runner.state, prefill_prompts(subject, prompts))
    states: list[Snapshot] = []
    for _ in range(STEPS):
        runner.step(len(prompts))
        states.append(snapshot(runner.state))
    return states
