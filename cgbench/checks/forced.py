"""Run single iterations with forced drafts, so that all that follows is known.

Verify must accept the true continuation and reject the one draft that was made wrong. So every
number of accepted drafts is reached, with a length limit or an EOS at every place in the run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from cgbench.checks.findings import Difference, Where
from cgbench.checks.steps import (
    BucketRunner,
    Snapshot,
    begin,
    decode,
    prefill_prompts,
    snapshot,
    tile,
    where_of,
)
from cgbench.checks.subject import Subject
from cgbench.checks.tokens import Judge
from cgbench.engine import iteration as stages
from cgbench.engine.runner import Runner
from cgbench.engine.state import NO_TOKEN, UNLIMITED_TOKENS, DecodeState, Prefilled
from cgbench.kernels.row_updates import ACTIVE, RowState

MAX_REQUESTS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """A ``Case`` is one ending of an iteration.

    ``wrong_at`` is the draft that is made wrong, counted from 0. It is None if no draft is.
    ``eos_at`` counts tokens from the prefill's. The token that row ``eos_row`` has there is the
    EOS.
    """

    name: str
    wrong_at: int | None = None
    tokens_left: int = UNLIMITED_TOKENS
    eos_at: int | None = None
    eos_row: int = 0


def cases_of(k: int, num_requests: int) -> list[Case]:
    """Return a case for every ending of one iteration."""
    positions = range(k + 2)
    return [
        Case("all drafts accepted"),
        *(Case(f"draft {j + 1} wrong", wrong_at=j) for j in range(k)),
        *(Case(f"{left} tokens left", tokens_left=left) for left in positions),
        *(Case(f"EOS at token {j}", eos_at=j, eos_row=j % num_requests) for j in positions),
        *(Case(f"EOS at token {j}, draft {k} wrong", k - 1, eos_at=j) for j in positions if k),
    ]


@dataclass(frozen=True, slots=True)
class Requests:
    """A ``Requests`` holds prefilled requests and how they go on. ``tokens[i]`` are the k + 2
    tokens after prompt i, of which the first is the prefill's.
    """

    prompts: list[list[int]]
    tokens: list[list[int]]
    prefilled: Prefilled

    @property
    def batch_size(self) -> int:
        """Return the number of requests."""
        return len(self.prompts)

    def eos(self, case: Case) -> int | None:
        """Return the token that ends requests in ``case``, or None if none does."""
        return None if case.eos_at is None else self.tokens[case.eos_row][case.eos_at]


def make_requests(subject: Subject, k: int) -> Requests:
    """Prefill a few prompts, and find out how they go on.

    In float32 the tokens are transformers'. In lower precision they are the engine's own, because
    near-ties are not what is looked at here.
    """
    prompts = tile(subject.prompts, min(MAX_REQUESTS, subject.largest(k)))
    prefilled = prefill_prompts(subject, prompts)
    if subject.is_exact:
        tokens = [subject.plain.tokens(tuple(prompt), k + 2) for prompt in prompts]
    else:
        tokens = decode(subject, BucketRunner(subject, k), prefilled, k + 2)
    return Requests(prompts, tokens, prefilled)


def forced_differences(
    subject: Subject, runner: Runner, requests: Requests, case: Case, judge: Judge
) -> Iterator[Difference]:
    """Run one iteration of ``case``, and yield what is wrong in each row's tokens and state after
    it.
    """
    _begin(subject, runner.state, requests, case)
    _force_drafts(subject, runner, requests, case.wrong_at)
    before = snapshot(runner.state)
    runner.step(requests.batch_size)
    for row, prompt in enumerate(requests.prompts):
        ending = _ending(requests, row, case)
        where = where_of(runner, requests.batch_size, row)
        prefix = [*prompt, requests.tokens[row][0]]
        got = _emitted(runner.state.full, row)
        found = judge.difference(prefix, ending.emitted, got, where)
        # The state is unknown past a near-tie.
        if found is None and got == ending.emitted:
            found = _state_difference(runner.state.full, before, row, ending, where)
        if found is not None:
            yield replace(found, text=f"{case.name}: {found.text}", inputs=before)


@dataclass(frozen=True, slots=True)
class _Ending:
    """This is what an iteration must leave of a row."""

    emitted: list[int]
    num_accepted: int
    goes_on: bool


def _ending(requests: Requests, row: int, case: Case) -> _Ending:
    """Return the accepted drafts and one token more, cut at EOS and at the limit."""
    first, *following = requests.tokens[row]
    eos = requests.eos(case)
    accepted = len(following) - 1 if case.wrong_at is None else case.wrong_at
    emitted = [] if first == eos else following[: min(accepted + 1, case.tokens_left)]
    if eos in emitted:
        emitted = emitted[: emitted.index(eos) + 1]
    goes_on = bool(emitted) and emitted[-1] != eos and len(emitted) < case.tokens_left
    return _Ending(emitted, accepted, goes_on)


def _emitted(rows: RowState, row: int) -> list[int]:
    tokens: list[int] = rows.out[row, : int(rows.num_emitted[row])].tolist()
    return tokens


def _state_difference(
    rows: RowState, before: Snapshot, row: int, ending: _Ending, where: Where
) -> Difference | None:
    """Return the first value of the row's state that does not follow from its tokens, or None."""
    count = len(ending.emitted)
    expected = {
        "seq_len": (rows.seq_len, int(before["seq_len"][row]) + count),
        "tokens_left": (rows.tokens_left, int(before["tokens_left"][row]) - count),
        "active": (rows.active, int(ending.goes_on)),
        "active in the result": (rows.result[:, ACTIVE], int(ending.goes_on)),
    }
    if ending.goes_on:
        expected["last"] = (rows.last, ending.emitted[-1])
        expected["num_accepted"] = (rows.num_accepted, ending.num_accepted)
    for name, (buffer, value) in expected.items():
        if (got := int(buffer[row])) != value:
            return Difference(f"{name} is {got}, not {value}", where)
    return None


def _begin(subject: Subject, state: DecodeState, requests: Requests, case: Case) -> None:
    eos = requests.eos(case)
    with _eos_of(state, eos):
        begin(
            subject,
            state,
            requests.prefilled,
            tokens_left=case.tokens_left,
            ignore_eos=eos is None,
        )


@contextmanager
def _eos_of(state: DecodeState, eos: int | None) -> Iterator[None]:
    """Set the state's end of sequence meanwhile, as a checkpoint with this last EOS would."""
    before = state.eos_token_ids
    if eos is not None:
        state.eos_token_ids = (NO_TOKEN,) * (state.full.eos_ids.shape[0] - 1) + (eos,)
    try:
        yield
    finally:
        state.eos_token_ids = before


def _force_drafts(
    subject: Subject, runner: Runner, requests: Requests, wrong_at: int | None
) -> None:
    """Write the true continuation as drafts.

    After a wrong one, write the tokens that verify itself gives there. They agree with verify, but
    must not be counted past a rejection.
    """
    batch_size = requests.batch_size
    rows = runner.state.rows(batch_size)
    k = rows.spec_tokens
    following = torch.tensor(requests.tokens, device=rows.drafts.device)[:, 1:]
    rows.drafts.copy_(following[:, :k])
    if wrong_at is None:
        return
    rows.drafts[:, wrong_at] = (following[:, wrong_at] + 1) % subject.spec.target.vocab_size
    bucket = runner.state.rows(runner.num_rows(batch_size))
    for j in range(wrong_at + 1, k):
        logits = stages.verify(subject.spec, bucket)[:batch_size, j]
        rows.drafts[:, j] = subject.spec.target.argmax(logits, partial(torch.argmax, dim=-1))
