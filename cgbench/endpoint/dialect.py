"""Find out which optional fields of a request a server accepts, and which it answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cgbench.endpoint.answers import Answer, Ask, read_answer
from cgbench.endpoint.http_server import RefusedRequestError, Server

COMPLETIONS = "/v1/completions"

TOP_LOGPROBS = (5, 1)
"""Alternatives asked for at each position: what OpenAI allows, and what every server allows."""

_SWITCHES: tuple[Mapping[str, object], ...] = (
    {"return_tokens_as_token_ids": True},
    {"return_token_ids": True},
    {"ignore_eos": True},
    {"stream_options": {"include_usage": True}},
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """A dialect describes the requests that one server accepts, and what its answers hold.

    ``fields`` go with every request. ``has_logprobs``: answers hold the logprobs of two tokens a
    position. ``has_ids``: answers hold the token ids of prompt and answer.
    """

    model: str
    fields: Mapping[str, object]
    has_logprobs: bool
    has_ids: bool

    def body(self, ask: Ask) -> dict[str, object]:
        """Return the body of a request as JSON values."""
        prompt: object = ask.prompt if isinstance(ask.prompt, str) else [*ask.prompt]
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": ask.max_tokens,
            "stream": True,
            **self.fields,
        }

    @property
    def words(self) -> str:
        """Return in words by what a difference of answers can be judged."""
        what = "token ids" if self.has_ids else "tokens" if self.has_logprobs else "text"
        return f"{what}, {'with' if self.has_logprobs else 'without'} logprobs"


def ask_server(server: Server, dialect: Dialect, ask: Ask) -> Answer:
    """Send one request and read its answer to the end.

    Raise ``EndpointError`` if it fails.
    """
    return read_answer(server.stream(COMPLETIONS, dialect.body(ask)))


def find_dialect(server: Server, model: str, prompt: str) -> Dialect:
    """Ask for two tokens with one optional field more at a time, and keep what is accepted.

    Raise ``EndpointError`` if the server refuses a request without any.
    """
    ask = Ask(prompt, 2)
    plain = Dialect(model, {"temperature": 0}, has_logprobs=False, has_ids=False)
    ask_server(server, plain, ask)
    fields = dict(plain.fields)
    for extra in _extras(server, plain, ask):
        fields |= extra
    found = ask_server(server, Dialect(model, fields, has_logprobs=False, has_ids=False), ask)
    has_logprobs = bool(found.tops) and all(len(top) > 1 for top in found.tops)
    return Dialect(model, fields, has_logprobs, bool(found.ids and found.prompt_ids))


def _extras(server: Server, plain: Dialect, ask: Ask) -> Iterator[Mapping[str, object]]:
    for count in TOP_LOGPROBS:
        if _accepts(server, plain, ask, {"logprobs": count}):
            yield {"logprobs": count}
            break
    for switch in _SWITCHES:
        if _accepts(server, plain, ask, switch):
            yield switch


def _accepts(server: Server, plain: Dialect, ask: Ask, extra: Mapping[str, object]) -> bool:
    body = Dialect(plain.model, {**plain.fields, **extra}, has_logprobs=False, has_ids=False)
    try:
        ask_server(server, body, ask)
    except RefusedRequestError:
        return False
    return True
