"""Record what a server answers one request at a time, and how noisy its logprobs are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from cgbench.endpoint.answers import Answer, Ask, Prompt
from cgbench.endpoint.engine_counters import Drafted, read_counters
from cgbench.endpoint.near_ties import (
    Likeness,
    Noise,
    Outcome,
    judge,
    measure_noise,
    shifts_of,
)
from cgbench.endpoint.probes import ragged
from cgbench.endpoint.traffic import Flow, Sent, decode_seconds
from cgbench.errors import EndpointError

MOST_SHIFT = 0.2
"""A median shift of logprobs between prefill and decode that no rounding makes."""

FORCED_TOKENS = 8
"""Tokens decoded after a prefill of what was decoded before."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference holds the answers that a server gave one request at a time, one a prompt.

    ``expected`` are the answers that later ones are compared with. They are the server's own, or
    those of the other server. They have the most tokens that a probe asks for.
    ``outcomes`` are those of the server against itself, and against the other one.
    """

    prompts: tuple[str, ...]
    expected: tuple[Answer, ...]
    noise: Noise
    drafted: tuple[Drafted, ...]
    """A prompt's drafts each. Empty: the server does not count them."""
    decode_s: float
    outcomes: tuple[Outcome, ...]


def num_reference_requests(num_prompts: int, *, has_other: bool) -> int:
    """Return how many requests ``make_reference`` sends at most."""
    return num_prompts * (5 if has_other else 3)


def make_reference(
    flow: Flow,
    other: Flow | None,
    prompts: tuple[str, ...],
    max_tokens: int,
    *,
    is_exact: bool,
    on_request: Callable[[], None] = lambda: None,
) -> Reference:
    """Send every prompt alone, and return the answers as a reference.

    The server gets each prompt twice, and once more after a part of its answer. The ``other``
    server gets it once, and once after a part of its answer.

    Raise ``EndpointError`` if a request fails, because there is nothing to judge by then.
    """
    asks = [Ask(prompt, max_tokens) for prompt in prompts]
    shorter = [Ask(ask.prompt, ragged(row, max_tokens)) for row, ask in enumerate(asks)]

    own, drafted = _counted(flow, asks, on_request)
    again, more = _counted(flow, shorter, on_request)
    runs = zip(own, shorter, again, strict=True)
    repeated = [(ours.first(ask.max_tokens), its) for ours, ask, its in runs]
    forced = [*_forced(flow, asks, own, on_request)]
    pairs = [*repeated, *forced]
    expected, theirs = own, list[tuple[Answer, Answer]]()
    if other is not None:
        # Noise is that of the server whose answers are taken to be right.
        expected = [_answer(other.alone(ask), on_request) for ask in asks]
        pairs = _forced(other, asks, expected, on_request)
        theirs = [*zip(expected, own, strict=True)]
    noise = measure_noise(pairs)
    outcomes = [judge(*pair, noise, is_exact=is_exact) for pair in (*repeated, *theirs)]
    # A prefill rounds otherwise than a decode does, in any precision.
    outcomes += [_after_prefill(*pair, noise) for pair in forced]
    return Reference(
        prompts,
        tuple(expected),
        noise,
        tuple(first + second for first, second in zip(drafted, more, strict=True)),
        decode_seconds(own),
        tuple(outcomes),
    )


def _counted(
    flow: Flow, asks: Sequence[Ask], on_request: Callable[[], None]
) -> tuple[list[Answer], list[Drafted]]:
    """Return the answers, and the drafts behind each if the server counts them."""
    answers, drafted = [], []
    before = read_counters(flow.server)
    for ask in asks:
        answers.append(_answer(flow.alone(ask), on_request))
        now = read_counters(flow.server)
        found = now.drafted_since(before, 1)
        drafted += [] if found is None else [found]
        before = now
    return answers, drafted if len(drafted) == len(answers) else []


def _answer(sent: Sent, on_request: Callable[[], None]) -> Answer:
    on_request()
    if sent.answer is None:
        raise EndpointError(sent.error or "no answer")
    if not sent.answer.tokens:
        raise EndpointError("the server answers one request alone with no token. See its log")
    return sent.answer


def _forced(
    flow: Flow, asks: Sequence[Ask], own: Sequence[Answer], on_request: Callable[[], None]
) -> list[tuple[Answer, Answer]]:
    """Return pairs: an answer's decoded tail, and the same after a prefill of its head."""
    found: list[tuple[Answer, Answer]] = []
    if not flow.dialect.has_logprobs:
        return found
    for row, (ask, answer) in enumerate(zip(asks, own, strict=True)):
        cut = len(answer.tokens) * (2 + row % 5) // 8
        prompt = _continued(ask, answer, cut)
        # The text is that of the whole answer, and says nothing of a part.
        tail = replace(answer.part(cut, cut + FORCED_TOKENS), text="")
        if prompt is None or not tail.tokens:
            continue
        count = len(tail.tokens)
        got = _answer(flow.alone(Ask(prompt, count)), on_request)
        if _is_continued(answer, got, cut):
            found.append((tail, got.first(count)))
    return found


def _continued(ask: Ask, answer: Answer, cut: int) -> Prompt | None:
    if answer.ids and answer.prompt_ids:
        return (*answer.prompt_ids, *answer.ids[:cut])
    if answer.prompt_tokens is None or not isinstance(ask.prompt, str):
        return None
    head = "".join(answer.tokens[:cut])
    return ask.prompt + head if answer.text.startswith(head) else None


def _is_continued(answer: Answer, got: Answer, cut: int) -> bool:
    """Return whether the prompt was read as the very tokens that were decoded."""
    if answer.ids and answer.prompt_ids:
        return True
    return answer.prompt_tokens is not None and got.prompt_tokens == answer.prompt_tokens + cut


def _after_prefill(expected: Answer, got: Answer, noise: Noise) -> Outcome:
    """Judge an answer after a prefill. Only an absurdly large shift is wrong by itself."""
    found = judge(expected, got, noise)
    shifts = shifts_of(expected, got)
    middle = median(shifts) if shifts else 0.0
    if found.likeness is not Likeness.WRONG and middle > MOST_SHIFT:
        text = f"logprobs after a prefill are off by {middle:.3g} from those of decoding"
        return Outcome(Likeness.WRONG, text, None, middle)
    return found
