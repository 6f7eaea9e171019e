"""Check that every scope's tokens are plain greedy decoding's, at every batch size and so at every
padding.

This is the one claim that a user cares about. Prompts are ragged and acceptance differs between
rows. So lengths diverge, rows end at different iterations, and batches are re-packed to smaller
buckets on the way. If the head seldom drafts well (random weights), hints make acceptance differ.
"""

from collections.abc import Iterator
from dataclasses import replace

from cgbench.checks.findings import Difference, Finding
from cgbench.checks.hints import HintedRunner
from cgbench.checks.steps import (
    BucketRunner,
    conclude,
    decode,
    first_rows,
    graph_runners,
    prefill_prompts,
    tile,
    where_of,
)
from cgbench.checks.subject import Subject
from cgbench.checks.tokens import Judge
from cgbench.engine.runner import Runner
from cgbench.engine.state import Prefilled
from cgbench.words import Scope

NAME = "equality"
TITLE = "tokens are plain greedy decoding's, at every bucket and padding"


def run(subject: Subject) -> Finding:
    """Decode the prompts with every runner at every batch size, and return the finding."""
    judge = Judge(subject)
    difference = _differences(subject, judge)
    finding = conclude(subject, NAME, difference, {})
    sizes = {f"batch_sizes_k{k}": len(subject.batch_sizes(k)) for k in subject.states}
    return replace(finding, figures=judge.figures | sizes)


def _differences(subject: Subject, judge: Judge) -> Iterator[Difference]:
    largest = max(subject.largest(k) for k in subject.states)
    prefilled = prefill_prompts(subject, tile(subject.prompts, largest))
    for k in subject.states:
        for batch_size in subject.batch_sizes(k):
            wave = first_rows(prefilled, batch_size)
            for runner in _runners(subject, k, batch_size):
                yield from _wave(subject, runner, wave, judge)


def _runners(subject: Subject, k: int, batch_size: int) -> list[Runner]:
    """Return the runners to try. If there are graphs, eager is tried at each bucket's own size
    alone, because it has no padding.
    """
    graphs = graph_runners(subject, k)
    eager = subject.runners[k, Scope.EAGER]
    if not graphs:
        return [eager, BucketRunner(subject, k)]
    is_bucket = subject.bucket_of(k, batch_size) == batch_size
    return [eager, *graphs] if is_bucket else graphs


def _wave(
    subject: Subject, runner: Runner, prefilled: Prefilled, judge: Judge
) -> Iterator[Difference]:
    count = subject.max_new_tokens
    hinted = HintedRunner(subject, runner)
    for row, got in enumerate(decode(subject, hinted, prefilled, count)):
        prompt = subject.prompts[row % len(subject.prompts)]
        where = where_of(runner, prefilled.batch_size, row)
        found = judge.difference(prompt, subject.plain.tokens(prompt, count), got, where)
        if found is not None:
            yield found
