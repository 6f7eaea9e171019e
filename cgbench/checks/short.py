"""The short audit: before a cell's latency is shown, does the cell answer right?

It looks twice, in a few hundredths of a second each.

*Tokens*: in float32 every cell's generated tokens are those of plain decoding (k = 0), because
speculation and graphs change the speed and not the text. The first request's tokens are also those
of a prefill over them, in which no decode kernel has a part.

*Steps*: a graph's iterations are compared with the same iterations launched by the host over the
same rows, with padding and scratch poisoned. They are equal bit for bit in any dtype, drafts too,
because both run the same kernels.

``cgbench audit`` looks at everything else. In lower precision, it looks at those kernels too.
"""

from collections.abc import Callable, Sequence
from math import nan

import torch
from torch import Tensor

from cgbench.checks.computed import mark_rows, rows_fault
from cgbench.checks.poison import fill_cache, fill_scratch, poison_rows
from cgbench.checks.tokens import first_difference
from cgbench.engine.calls import Prefill, Rows
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding
from cgbench.engine.runner import Runner
from cgbench.engine.state import UNLIMITED_TOKENS, DecodeState, Prefilled
from cgbench.kernels.row_updates import OUT
from cgbench.models.target import request_keys
from cgbench.parallel.ranks import first_failure, first_unlike

STEPS = 4

# Sums in float32 depend on the number of rows in their last bits. So candidates may change places
# if their logits differ by less than this part of the largest logit. No fault lands so near every
# time.
FLOAT32_TIE = 1e-5

# So many tokens are compared with a prefill. Logits of thousands, at a vocabulary of 150,000, take
# gigabytes.
MOST_TOKENS = 64

Tokens = Sequence[Sequence[int]]
"""Token ids, one list per request."""


def token_failure(spec: Speculator, prompts: Tokens, expected: Tokens, got: Tokens) -> str | None:
    """Return a line on the first token in which ``got`` is not ``expected``, other than by a tie.
    Return None if there is none. Slot 0 is overwritten.
    """
    if parted := first_unlike((expected, got), "its tokens"):
        return parted
    for request, (ours, its) in enumerate(zip(expected, got, strict=True)):
        position = first_difference(ours, its)
        if position is None:
            continue
        pair = ours[position : position + 1], its[position : position + 1]
        prefix = [*prompts[request], *ours[:position]]
        if all(pair) and _is_tie(_prefill_logits(spec, prefix, 1)[0], *pair[0], *pair[1]):
            continue
        return f"request {request}, token {position}: {_named(pair[1])}, not {_named(pair[0])}"
    return None


def _named(token: Sequence[int]) -> str:
    return str(token[0]) if token else "nothing"


def prefill_failure(spec: Speculator, prompt: Sequence[int], tokens: Sequence[int]) -> str | None:
    """Return a line on the first of ``tokens`` that a prefill over ``prompt`` and them does not
    choose, other than by a tie. Return None if the prefill chooses all that are compared. Slot 0 is
    overwritten.
    """
    tokens = tokens[:MOST_TOKENS]
    logits = _prefill_logits(spec, [*prompt, *tokens[:-1]], len(tokens))
    chosen = logits.argmax(-1).tolist()
    for position, (ours, its) in enumerate(zip(chosen, tokens, strict=True)):
        if ours != its and not _is_tie(logits[position], ours, its):
            return f"request 0, token {position}: {its}, not {ours}"
    return None


@torch.inference_mode()
def _prefill_logits(spec: Speculator, tokens: Sequence[int], count: int) -> Tensor:
    """Return the logits ``[count, V]`` at the last ``count`` of ``tokens``, in slot 0."""
    ids = torch.tensor([tokens], device=spec.target.device)
    positions = torch.arange(len(tokens), device=ids.device)[None]
    slot, length = torch.zeros_like(ids[:, 0]), torch.full_like(ids[:, 0], len(tokens))
    spec.cache.request_keys[:1] = request_keys([tokens], ids.device)
    call = Prefill(Rows(spec.cache, slot, positions), length)
    hidden = spec.target.forward(ids, positions, call)
    return spec.target.logits(hidden.post_norm[0, -count:]).float()


def _is_tie(logits: Tensor, one: int, other: int) -> bool:
    margin = (logits[one] - logits[other]).abs()
    return bool(margin <= FLOAT32_TIE * logits.abs().max())


class StepAudit:
    """A ``StepAudit`` compares the iterations of graph cells with eager ones, from one prefill.

    ``prefill`` fills the slots. It is called once here, and again after a failure, because a fault
    may have left poison in them. ``seed`` starts the draws of a random acceptance rule, alike for
    both sides.
    """

    def __init__(self, spec: Speculator, prefill: Callable[[], Prefilled], seed: int) -> None:
        self.spec = spec
        self.prefill = prefill
        self.prefilled = prefill()
        self.seed = seed
        self._eager: dict[tuple[int, int], list[Tensor] | None] = {}

    @torch.inference_mode()
    def failure(self, runner: Runner) -> str | None:
        """Return a line on what a replay does otherwise than eager, or None.

        Values are not compared if eager is not equal to itself bit for bit, as with kernels that
        add in any order.
        """
        state, batch_size = runner.state, self.prefilled.batch_size
        bucket = runner.num_rows(batch_size)
        expected = self._expected(state, bucket)
        got: list[Tensor] = []
        failure = self._trace(state, bucket, lambda: runner.step(batch_size), got)
        if failure is None and expected is not None:
            failure = first_step_difference(expected, got, state.spec_tokens)
        failure = first_failure(failure)
        if failure is not None:
            fill_cache(self.spec.cache, 0.0)
            self.prefilled = self.prefill()
        return failure

    def _expected(self, state: DecodeState, bucket: int) -> list[Tensor] | None:
        """Return what eager leaves, computed once for all scopes. Return None if eager differs from
        itself.
        """
        key = state.spec_tokens, bucket
        if key not in self._eager:
            once, again = self._trace_eager(state, bucket), self._trace_eager(state, bucket)
            is_stable = first_step_difference(once, again, state.spec_tokens) is None
            self._eager[key] = once if is_stable else None
        return self._eager[key]

    def _trace_eager(self, state: DecodeState, bucket: int) -> list[Tensor]:
        trace: list[Tensor] = []
        self._trace(state, bucket, lambda: iteration(self.spec, state.rows(bucket)), trace)
        return trace

    def _trace(
        self, state: DecodeState, bucket: int, step: Callable[[], None], trace: list[Tensor]
    ) -> str | None:
        """Fill ``trace`` with what each step left in the real rows: result and drafts, side by
        side. Return what is wrong with the rows that a step computed.
        """
        batch_size = self.prefilled.batch_size
        begin_decoding(
            self.spec,
            state,
            self.prefilled,
            tokens_left=UNLIMITED_TOKENS,
            ignore_eos=True,
            seed=self.seed,
        )
        try:
            for _ in range(STEPS):
                mark_rows(self.spec, state)
                poison_rows(state, slice(batch_size, bucket), self.spec.target.last_token)
                fill_scratch(self.spec.cache, nan)
                step()
                if fault := first_failure(rows_fault(self.spec, state, batch_size, bucket)):
                    return fault
                rows = state.rows(batch_size)
                trace.append(torch.cat([rows.result, rows.drafts], dim=1))
        finally:
            fill_scratch(self.spec.cache, 0.0)
        return None


def first_step_difference(
    expected: Sequence[Tensor], got: Sequence[Tensor], spec_tokens: int
) -> str | None:
    """Return, in words, the first value of the first step in which two traces differ. Return None
    if none does.
    """
    for number, (ours, its) in enumerate(zip(expected, got, strict=True), start=1):
        if torch.equal(ours, its):
            continue
        row, column = (ours != its).nonzero()[0].tolist()
        name = _column_name(column, spec_tokens)
        return (
            f"step {number}, row {row}: {name} is {int(its[row, column])}, "
            f"eager's is {int(ours[row, column])}"
        )
    return None


def _column_name(column: int, spec_tokens: int) -> str:
    if column < OUT:
        return ("num_emitted", "num_accepted", "active")[column]
    token = column - OUT
    if token <= spec_tokens:
        return f"out[{token}]"
    return f"draft {token - spec_tokens}"
