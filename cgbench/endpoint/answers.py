"""Hold one request to a server and its answer: tokens, logprobs and their arrival times."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, TypeAlias

from cgbench.inputs import JsonObject

Prompt: TypeAlias = str | tuple[int, ...]
"""Text, or token ids."""


@dataclass(frozen=True, slots=True)
class Ask:
    """An ``Ask`` is one greedy request of at most ``max_tokens`` tokens."""

    prompt: Prompt
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer holds what came back for one request.

    ``tokens`` are token ids as text if the server gives them, tokens if it gives logprobs, and
    otherwise characters. ``logprobs`` and ``tops`` have an entry a token, or none at all. ``tops``
    has the logprob of each of the likeliest tokens. ``finish`` is the server's reason for the end.
    ``arrivals`` are the seconds at which tokens came, of a clock that all answers share.
    """

    tokens: tuple[str, ...]
    text: str
    finish: str | None
    arrivals: tuple[float, ...]
    logprobs: tuple[float, ...] = ()
    tops: tuple[Mapping[str, float], ...] = ()
    ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    prompt_tokens: int | None = None

    @property
    def is_text(self) -> bool:
        """Return whether the server gives neither tokens nor ids, so that ``tokens`` is text."""
        return not self.ids and not self.logprobs

    @property
    def decoded(self) -> tuple[float, float] | None:
        """Return the time of the first and of the last token, or None if none came."""
        return (self.arrivals[0], self.arrivals[-1]) if self.arrivals else None

    def first(self, count: int) -> "Answer":
        """Return the answer that a request of ``count`` tokens would have had.

        Text alone is returned whole, because nothing says where a token ends.
        """
        if count >= len(self.tokens) or self.is_text:
            return self
        return replace(self.part(0, count), finish="length")

    def part(self, start: int, end: int) -> "Answer":
        """Return the answer with tokens ``start`` to ``end`` alone. The rest of it stays."""
        return replace(
            self,
            tokens=self.tokens[start:end],
            logprobs=self.logprobs[start:end],
            tops=self.tops[start:end],
            ids=self.ids[start:end],
        )


@dataclass
class _Reading:
    texts: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[dict[str, float]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int | None = None

    def add(self, at: float, event: JsonObject) -> None:
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int):
            self.prompt_tokens = usage["prompt_tokens"]
        choices = event.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            return
        choice = choices[0]
        if isinstance(choice.get("finish_reason"), str):
            self.finish = choice["finish_reason"]
        self.prompt_ids += _whole(choice.get("prompt_token_ids"))
        ids = _whole(choice.get("token_ids"))
        text = choice.get("text")
        text = text if isinstance(text, str) else ""
        self.ids += ids
        self.texts.append(text)
        num_tokens = self._add_logprobs(choice.get("logprobs"))
        if text or ids or num_tokens:
            self.arrivals.append(at)

    def _add_logprobs(self, found: Any) -> int:
        """Add the tokens of one event, and return how many they were."""
        if not isinstance(found, dict) or not isinstance(found.get("tokens"), list):
            return 0
        tokens, logprobs, tops = (
            _padded(found.get(name), len(found["tokens"]))
            for name in ("tokens", "token_logprobs", "top_logprobs")
        )
        for token, logprob, top in zip(tokens, logprobs, tops, strict=True):
            self.tokens.append(str(token))
            self.logprobs.append(_number(logprob))
            self.tops.append(_top(str(token), logprob, top))
        return len(tokens)


def read_answer(events: Iterable[tuple[float, JsonObject]]) -> Answer:
    """Put the events of one stream together into an answer."""
    reading = _Reading()
    for at, event in events:
        reading.add(at, event)
    text = "".join(reading.texts)
    ids, tokens = tuple(reading.ids), reading.tokens
    has_logprobs = bool(tokens) and (not ids or len(ids) == len(tokens))
    if ids:
        names: Sequence[str] = tokens if has_logprobs else [*map(str, ids)]
    else:
        names = tokens if has_logprobs else text
    return Answer(
        tuple(names),
        text,
        reading.finish,
        tuple(reading.arrivals),
        tuple(reading.logprobs) if has_logprobs else (),
        tuple(reading.tops) if has_logprobs else (),
        ids,
        tuple(reading.prompt_ids),
        reading.prompt_tokens,
    )


def _top(token: str, logprob: Any, top: Any) -> dict[str, float]:
    """Return the likeliest tokens, the chosen one among them."""
    found = (
        {str(name): _number(value) for name, value in top.items()} if isinstance(top, dict) else {}
    )
    return found | {token: _number(logprob)}


def _number(value: Any) -> float:
    """Return a logprob. A value that is no number counts as that of a token servers exclude."""
    is_number = isinstance(value, int | float) and isfinite(value)
    return float(value) if is_number else -9999.0


def _whole(value: Any) -> list[int]:
    if not isinstance(value, list):
        return []
    return [each for each in value if isinstance(each, int)]


def _padded(value: Any, count: int) -> list[Any]:
    values = value[:count] if isinstance(value, list) else []
    return [*values, *[None] * (count - len(values))]
