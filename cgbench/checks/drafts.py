"""Check that the drafts, after every iteration, are those of the head recomputed from the first
token.

Lossless decoding hides a broken draft: the tokens stay right and only acceptance falls, as it would
under a head that is merely bad. So the drafts themselves are compared.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cgbench.checks.findings import Difference, Finding, not_run
from cgbench.checks.noise import noise_when_rounded_otherwise
from cgbench.checks.reference import reference_draft_logits
from cgbench.checks.steps import (
    STEPS,
    BucketRunner,
    Trajectory,
    conclude,
    start,
    tile,
    where_of,
)
from cgbench.checks.subject import Subject
from cgbench.checks.tokens import Judge, first_difference
from cgbench.parallel.ranks import first_unlike

NAME = "drafts"
TITLE = "drafts are those of the head recomputed from the first token"

MAX_REQUESTS = 4


def run(subject: Subject) -> Finding:
    """Recompute the drafts of a few requests after every step, and return the finding."""
    if not any(subject.states):
        return not_run(NAME, "k = 0 has no drafts: see --spec-tokens")
    judge = Judge(subject)
    finding = conclude(subject, NAME, _differences(subject, judge), {})
    return replace(finding, figures=judge.figures)


def _differences(subject: Subject, judge: Judge) -> Iterator[Difference]:
    for k in (k for k in subject.states if k):
        count = min(MAX_REQUESTS, subject.largest(k))
        requests = start(subject, BucketRunner(subject, k), tile(subject.prompts, count))
        for _ in range(STEPS):
            yield from _compare(subject, requests, judge)
            requests.step()
        yield from _compare(subject, requests, judge)


def _compare(subject: Subject, requests: Trajectory, judge: Judge) -> Iterator[Difference]:
    for row, sequence in enumerate(requests.sequences):
        found = _row(subject, requests, row, sequence, judge)
        if found is not None:
            yield found


def _row(
    subject: Subject, requests: Trajectory, row: int, sequence: list[int], judge: Judge
) -> Difference | None:
    """Return the first draft of a row that differs, or None. Drafts past a near-tie are not
    compared, because the chain is another one from there.
    """
    assert subject.spec.head is not None
    judge.compared += 1
    got = requests.rows.drafts[row].tolist()
    where = where_of(requests.runner, requests.batch_size, row)
    parted = first_unlike((sequence, got), "its drafts")
    if parted is not None:
        return Difference(parted, where)
    target, head = subject.spec.target, subject.spec.head
    logits = reference_draft_logits(target, head, sequence, len(got), rounding=subject.rounding)
    expected = logits.argmax(-1).tolist()
    step = first_difference(expected, got)
    if step is None:
        return None
    ours, its = logits[step, expected[step]].item(), logits[step, got[step]].item()

    def again() -> Tensor:
        # All drafts of a parallel drafter see one another's places, and none another's token.
        count, before = (len(got), []) if head.family.is_parallel else (step + 1, got[:step])
        return reference_draft_logits(target, head, sequence, count, before, subject.rounding)[step]

    if judge.is_forgiven(
        ours - its,
        lambda: int(again().argmax()),
        got[step],
        lambda: noise_when_rounded_otherwise(target, head, again, logits[step], subject.least_move),
    ):
        return None
    return Difference(
        f"draft {step + 1} after {len(sequence)} tokens is {got[step]}, not {expected[step]}",
        where,
        expected=expected[step],
        got=got[step],
        expected_logit=ours,
        got_logit=its,
        inputs={"token_ids": torch.tensor(sequence), "drafts": torch.tensor(got)},
    )
