"""Check that, from the same state, a graph's iteration is eager's at the bucket, bit for bit in
every dtype.

Tokens may agree while drafts do not, and a serving engine then ships graphs whose acceptance is a
fraction of eager's. A graph holds the kernels that eager launches at the bucket's size. So nothing
excuses a difference, and acceptance per position is equal too.
"""

from collections.abc import Iterator

from cgbench.checks.findings import Difference, Finding, not_run
from cgbench.checks.hints import Hints
from cgbench.checks.steps import (
    STEPS,
    BucketRunner,
    Snapshot,
    begin,
    conclude,
    first_rows,
    first_unequal,
    graph_runners,
    prefill_prompts,
    restore,
    snapshot,
    tile,
    where_of,
)
from cgbench.checks.subject import Subject
from cgbench.engine.acceptance_counts import accepted_per_pos
from cgbench.engine.runner import Runner
from cgbench.engine.state import DecodeState
from cgbench.words import Scope

NAME = "parity"
TITLE = "graph replays accept and draft as eager does at the bucket"

COMPARED = ("result", "drafts", "last", "seq_len", "tokens_left", "active")


def run(subject: Subject) -> Finding:
    """Compare graphs with eager at the bucket, step by step, and return the finding.

    Without graphs and in float32, eager at the bucket is compared with eager without padding.
    """
    has_graphs = bool(subject.graph_sets)
    if not has_graphs and not subject.is_exact:
        return not_run(NAME, "there are no graphs, and unpadded eager rounds otherwise than padded")
    if not has_graphs and not subject.has_padding:
        return not_run(
            NAME, "there are no graphs, and no batch size is padded: see --capture-sizes"
        )
    figures: dict[str, str] = {
        "compared": "graphs with eager at the bucket"
        if has_graphs
        else "eager at the bucket with eager at the batch size"
    }
    return conclude(subject, NAME, _differences(subject, figures), figures)


def _differences(subject: Subject, figures: dict[str, str]) -> Iterator[Difference]:
    largest = max(subject.largest(k) for k in subject.states)
    prefilled = prefill_prompts(subject, tile(subject.prompts, largest))
    for k, state in subject.states.items():
        accepted: dict[str, list[int]] = {}
        hints = Hints(subject, state)
        for batch_size in subject.batch_sizes(k):
            begin(subject, state, first_rows(prefilled, batch_size))
            for _ in range(STEPS):
                hints.write(batch_size)
                yield from _step(subject, state, batch_size, accepted)
        figures |= _per_position(k, accepted)


def _step(
    subject: Subject, state: DecodeState, batch_size: int, accepted: dict[str, list[int]]
) -> Iterator[Difference]:
    """Run one iteration by every runner from the same state. The state moves on once."""
    k = state.spec_tokens
    before = snapshot(state)
    bucket = BucketRunner(subject, k)
    bucket.step(batch_size)
    expected = snapshot(state)
    accepted.setdefault("eager", []).extend(state.rows(batch_size).num_accepted.tolist())
    for runner in graph_runners(subject, k) or [subject.runners[k, Scope.EAGER]]:
        restore(state, before)
        runner.step(batch_size)
        accepted.setdefault(runner.scope.value, [])
        if runner.scope is not Scope.EAGER:
            accepted[runner.scope.value] += state.rows(batch_size).num_accepted.tolist()
        found = _difference(runner, batch_size, before, expected)
        if found is not None:
            yield found


def _difference(
    runner: Runner, batch_size: int, before: Snapshot, expected: Snapshot
) -> Difference | None:
    got = snapshot(runner.state)
    unequal = first_unequal(got, expected, batch_size, COMPARED)
    if unequal is None:
        return None
    name, row = unequal
    ours, its = expected[name][row].view(-1), got[name][row].view(-1)
    column = int((ours != its).nonzero()[0, 0])
    return Difference(
        f"{name}: {its.tolist()}, not eager's {ours.tolist()}",
        where_of(runner, batch_size, row),
        expected=int(ours[column]),
        got=int(its[column]),
        inputs=before,
    )


def _per_position(k: int, accepted: dict[str, list[int]]) -> dict[str, str]:
    """Return the acceptance rate of each draft position, by k and by what ran."""
    return {
        f"acceptance_k{k}_{name}": ";".join(
            f"{count / len(kept):.3f}" for count in accepted_per_pos(kept, k)
        )
        for name, kept in accepted.items()
        if k and kept
    }
