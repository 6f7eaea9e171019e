"""Where a request may end, and what its last iteration then says.

No requests at all, one token of room, a length limit or an EOS inside an accepted run, every
number of drafts accepted, the ends of the vocabulary, the longest context that the KV holds. To
reach each place on purpose the drafts are forced: verify must accept the true continuation, and
reject the one draft that was made wrong.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from cgbench.engine import iteration as stages
from cgbench.engine.runner import Runner
from cgbench.engine.state import DecodeState, RowState
from cgbench.measure.audit.findings import Difference, Finding
from cgbench.measure.audit.stepping import (
    UNLIMITED_TOKENS,
    BucketRunner,
    Prompts,
    begin,
    conclude,
    copy_watched,
    decode,
    padded_runners,
    prefill_prompts,
    snapshot,
    tile,
    unequal_kv,
    where_of,
)
from cgbench.measure.audit.subject import Subject
from cgbench.measure.audit.tokens import Judge

NAME = "limits"
TITLE = "requests end where they must: EOS, length, rejection, longest context"

MAX_REQUESTS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One iteration on purpose. ``wrong_at``: the draft made wrong, from 0, None for none.
    ``eos_at``: the EOS is what the row ``eos_row`` emits there."""

    name: str
    wrong_at: int | None = None
    tokens_left: int = UNLIMITED_TOKENS
    eos_at: int | None = None
    eos_row: int = 0


@dataclass
class Requests:
    """Prompts, and what follows the token that their prefill emits: k + 1 tokens each."""

    prompts: list[list[int]]
    firsts: list[int]
    following: list[list[int]]


def run(subject: Subject) -> Finding:
    judge = Judge(subject)
    figures: dict[str, int] = {"cases": 0}
    finding = conclude(NAME, _differences(subject, judge, figures), {})
    return replace(finding, figures=figures | judge.figures)


def _differences(subject: Subject, judge: Judge, figures: dict[str, int]) -> Iterator[Difference]:
    for k in subject.states:
        requests = _requests(subject, k)
        for runner in padded_runners(subject, k):
            yield from _no_requests(subject, runner)
            for case in _cases(k, len(requests.prompts)):
                figures["cases"] += 1
                yield from _forced(subject, runner, requests, case, judge)
            for prompts in (_edge_prompts(subject, k), _longest_prompts(subject, k)):
                yield from _greedy(subject, runner, prompts, judge)


def _requests(subject: Subject, k: int) -> Requests:
    """In float32 what follows is transformers' word; in lower precision the engine's own, for
    near-ties are not what is looked at here."""
    prompts = tile(subject.prompts, min(MAX_REQUESTS, subject.largest(k)))
    if subject.is_exact:
        tokens = [subject.plain.tokens(tuple(prompt), k + 2) for prompt in prompts]
    else:
        runner = BucketRunner(subject, k)
        tokens = decode(subject, runner, prefill_prompts(subject, prompts), k + 2)
    return Requests(prompts, [each[0] for each in tokens], [each[1:] for each in tokens])


def _cases(k: int, num_requests: int) -> list[Case]:
    positions = range(k + 1)
    return [
        Case("all drafts accepted"),
        *(Case(f"draft {j + 1} wrong", wrong_at=j) for j in range(k)),
        *(Case(f"{j + 1} tokens left", tokens_left=j + 1) for j in positions),
        *(Case(f"EOS at {j}", eos_at=j, eos_row=j % num_requests) for j in positions),
        *(Case(f"EOS at {j}, draft {k} wrong", k - 1, eos_at=j) for j in range(k)),
    ]


def _forced(
    subject: Subject, runner: Runner, requests: Requests, case: Case, judge: Judge
) -> Iterator[Difference]:
    state, batch_size = runner.state, len(requests.prompts)
    prefilled = prefill_prompts(subject, requests.prompts)
    eos = None if case.eos_at is None else requests.following[case.eos_row][case.eos_at]
    with _eos_of(state, eos):
        begin(subject, state, prefilled, tokens_left=case.tokens_left, ignore_eos=eos is None)
    rows = state.rows(batch_size)
    was_active = rows.active.tolist()
    _force_drafts(subject, runner, rows, requests, case.wrong_at)
    before = snapshot(state)
    runner.step(batch_size)
    for row in range(batch_size):
        where = where_of(runner, batch_size, row)
        expected = _expected(requests.following[row], case, eos) if was_active[row] else []
        got = rows.out[row, : int(rows.num_emitted[row])].tolist()
        prefix = [*requests.prompts[row], requests.firsts[row]]
        found = judge.difference(prefix, expected, got, where)
        if found is None and got == expected:
            found = _after(rows, row, before, case, eos, where_expected=expected)
            found = None if found is None else replace(found, where=where)
        if found is not None:
            yield replace(found, text=f"{case.name}: {found.text}", inputs=before)


def _expected(following: list[int], case: Case, eos: int | None) -> list[int]:
    """What the iteration must emit: the accepted drafts and one more, cut at EOS and limit."""
    accepted = len(following) - 1 if case.wrong_at is None else case.wrong_at
    tokens = following[: min(accepted + 1, case.tokens_left)]
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


def _after(
    rows: RowState,
    row: int,
    before: dict[str, torch.Tensor],
    case: Case,
    eos: int | None,
    *,
    where_expected: list[int],
) -> Difference | None:
    """Whether the row's state is what its tokens say."""
    emitted = len(where_expected)
    goes_on = emitted > 0 and where_expected[-1] != eos and emitted < case.tokens_left
    expected = {
        "seq_len": int(before["seq_len"][row]) + emitted,
        "tokens_left": int(before["tokens_left"][row]) - emitted,
        "active": int(goes_on),
    }
    if goes_on:
        expected |= {"last": where_expected[-1], "num_accepted": emitted - 1}
    for name, value in expected.items():
        got = int(getattr(rows, name)[row])
        if got != value:
            return Difference(f"{name} is {got}, not {value}", expected=value, got=got)
    return None


@contextmanager
def _eos_of(state: DecodeState, eos: int | None) -> Iterator[None]:
    """The state as a checkpoint with this end of sequence would have it."""
    before = state.eos_token_ids
    if eos is not None:
        state.eos_token_ids = (eos,) * state.full.eos_ids.shape[0]
    try:
        yield
    finally:
        state.eos_token_ids = before


def _force_drafts(
    subject: Subject, runner: Runner, rows: RowState, requests: Requests, wrong_at: int | None
) -> None:
    """The true continuation as drafts. After a wrong one, what verify would say after it: drafts
    that agree must not be counted past a rejection."""
    k = rows.spec_tokens
    following = torch.tensor(requests.following, device=rows.drafts.device)
    rows.drafts.copy_(following[:, :k])
    if wrong_at is None:
        return
    rows.drafts[:, wrong_at] = (following[:, wrong_at] + 1) % subject.spec.target.vocab_size
    bucket = runner.state.rows(runner.num_rows(rows.batch_size))
    for j in range(wrong_at + 1, k):
        logits = stages.verify(subject.spec, bucket)
        rows.drafts[:, j] = logits[: rows.batch_size, j].argmax(-1)


def _no_requests(subject: Subject, runner: Runner) -> Iterator[Difference]:
    """A bucket of padding alone emits nothing, and writes to scratch alone."""
    for bucket in sorted(
        {runner.num_rows(b) for b in subject.edge_sizes(runner.state.spec_tokens)}
    ):
        runner.state.clear()
        before = copy_watched(subject, runner.state.spec_tokens)
        runner.step(bucket)
        rows = runner.state.rows(bucket)
        if rows.num_emitted.any() or rows.active.any():
            yield Difference("rows of padding emit tokens", where_of(runner, bucket))
        slots = torch.arange(subject.spec.cache.num_slots, device=rows.last.device)
        live = (slots != subject.spec.cache.scratch_slot)[:, None]
        found = unequal_kv(subject, before, live)
        if found is not None:
            text = f"rows of padding wrote to KV slot {found[1]}"
            yield Difference(text, where_of(runner, bucket))


def _greedy(
    subject: Subject, runner: Runner, prompts: Prompts, judge: Judge
) -> Iterator[Difference]:
    """Whole requests, two accepted runs long."""
    count = _tokens_of(runner.state.spec_tokens)
    got = decode(subject, runner, prefill_prompts(subject, prompts), count)
    for row, prompt in enumerate(prompts):
        expected = subject.plain.tokens(tuple(prompt), count)
        where = where_of(runner, len(prompts), row)
        found = judge.difference(prompt, expected, got[row], where)
        if found is not None:
            yield found


def _tokens_of(k: int) -> int:
    return 2 * (k + 1)


def _edge_prompts(subject: Subject, k: int) -> list[list[int]]:
    """Of the vocabulary's first and last token, one token long among them."""
    last = subject.spec.target.model.get_input_embeddings().weight.shape[0] - 1
    prompts = [[0], [last], [0, last, last, 0], [last, 0, 0]]
    return prompts[: subject.largest(k)]


def _longest_prompts(subject: Subject, k: int) -> list[list[int]]:
    """As long as the KV has room for, in neighbouring slots, for an overrun shows in the next."""
    length = subject.spec.cache.room - _tokens_of(k) - 2 * k
    tokens = [token for prompt in subject.prompts for token in prompt]
    tokens *= -(-(length + 1) // len(tokens))
    return [tokens[i : i + length] for i in range(min(2, subject.largest(k)))]
