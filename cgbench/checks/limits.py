"""Check where a request may begin and end, and what its last iteration then emits.

The cases are no requests at all, no or one token of room, and a length limit or an EOS inside an
accepted run. Others are every number of drafts accepted, the ends of the vocabulary, and the
longest context that the KV holds. Each is tried for every k.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from cgbench.checks.findings import Difference, Finding
from cgbench.checks.forced import cases_of, forced_differences, make_requests
from cgbench.checks.steps import (
    Prompts,
    conclude,
    copy_watched,
    decode,
    padded_runners,
    prefill_prompts,
    snapshot,
    unequal_kv,
    where_of,
)
from cgbench.checks.subject import Subject
from cgbench.checks.tokens import Judge
from cgbench.engine.runner import Runner

NAME = "limits"
TITLE = "requests end where they must: EOS, length, rejection, longest context"


def run(subject: Subject) -> Finding:
    """Try every ending of a request for every k, and return the finding."""
    judge = Judge(subject)
    figures: dict[str, float | int] = {"cases": 0}
    finding = conclude(subject, NAME, _differences(subject, judge, figures), {})
    return replace(finding, figures=figures | judge.figures)


def _differences(
    subject: Subject, judge: Judge, figures: dict[str, float | int]
) -> Iterator[Difference]:
    for k in subject.states:
        for runner in padded_runners(subject, k):
            requests = make_requests(subject, k)
            for case in cases_of(k, requests.batch_size):
                figures["cases"] += 1
                yield from forced_differences(subject, runner, requests, case, judge)
            for prompts in (_edge_prompts(subject, k), _longest_prompts(subject, k)):
                figures["longest_context"] = max(len(prompt) for prompt in prompts)
                yield from _greedy(subject, runner, prompts, judge)
            yield from _no_requests(subject, runner)


def _no_requests(subject: Subject, runner: Runner) -> Iterator[Difference]:
    """Check that a bucket of padding alone emits nothing, and writes to scratch alone."""
    state, cache = runner.state, subject.spec.cache
    live = torch.ones(cache.num_slots, cache.room, dtype=torch.bool, device=state.full.last.device)
    live[cache.scratch_slot] = False
    for bucket in sorted({runner.num_rows(b) for b in subject.edge_sizes(state.spec_tokens)}):
        state.clear()
        before, kv = snapshot(state), copy_watched(subject, state.spec_tokens)
        runner.step(bucket)
        where = where_of(runner, bucket)
        if state.rows(bucket).num_emitted.any() or state.rows(bucket).active.any():
            yield Difference("rows of padding emit tokens", where, inputs=before)
        found = unequal_kv(subject, kv, live)
        if found is not None:
            yield Difference(f"rows of padding wrote to KV slot {found[1]}", where, inputs=before)


def _greedy(
    subject: Subject, runner: Runner, prompts: Prompts, judge: Judge
) -> Iterator[Difference]:
    """Check whole requests, as long as two accepted runs."""
    count = _num_tokens(runner.state.spec_tokens)
    got = decode(subject, runner, prefill_prompts(subject, prompts), count)
    for row, prompt in enumerate(prompts):
        expected = subject.plain.tokens(tuple(prompt), count)
        where = where_of(runner, len(prompts), row)
        found = judge.difference(prompt, expected, got[row], where)
        if found is not None:
            yield found


def _num_tokens(k: int) -> int:
    return 2 * (k + 1)


def _edge_prompts(subject: Subject, k: int) -> list[list[int]]:
    """Return prompts of the vocabulary's first and last token, some of them one token long."""
    last = subject.spec.target.last_token
    prompts = [[0], [last], [0, last, last, 0], [last, 0, 0]]
    return prompts[: subject.largest(k)]


def _longest_prompts(subject: Subject, k: int) -> list[list[int]]:
    """Return prompts as long as the KV has room for. They lie in neighbouring slots, so an overrun
    shows.
    """
    length = subject.spec.cache.room - _num_tokens(k) - 2 * k
    tokens = [token for prompt in subject.prompts for token in prompt]
    tokens *= -(-(length + 1) // len(tokens))
    return [tokens[i : i + length] for i in range(min(2, subject.largest(k)))]
