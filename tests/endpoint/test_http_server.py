"""The client against servers that misbehave: each ends in one line, and none in a traceback."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from cgbench.endpoint.answers import Ask, read_answer
from cgbench.endpoint.dialect import find_dialect
from cgbench.endpoint.http_server import Address, RefusedRequestError, Server
from cgbench.errors import BadInputError, EndpointError


@contextmanager
def answering(status: int, body: bytes) -> Iterator[Server]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Server(
            Address.parse("--endpoint", f"http://127.0.0.1:{server.server_address[1]}/v1/")
        )
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host", "http://", "http://h:port", "http://h/v1?key=1", "http://u@h"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(BadInputError, match="--against"):
        Address.parse("--against", url)


def test_v1_may_be_part_of_the_url_or_not() -> None:
    found = {Address.parse("--endpoint", f"http://h:8000{path}").path for path in ("", "/", "/v1")}
    assert found == {""}
    assert Address.parse("--endpoint", "https://h/a/v1").path == "/a"
    assert Address.parse("--endpoint", "https://h").port == 443


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_a_stream_is_read_to_its_end() -> None:
    body = b": a comment\n" + event(text="a") + event(text="b", finish_reason="length")
    with answering(200, body + b"data: [DONE]\n\n" + event(text="after")) as server:
        found = read_answer(server.stream("/v1/completions", {}))
    assert (found.text, found.finish, len(found.arrivals)) == ("ab", "length", 2)
    assert found.tokens == ("a", "b") and found.is_text


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refused_request_has_the_servers_reason(status: int) -> None:
    with answering(status, b'{"error": {"message": "no logprobs here"}}') as server:
        with pytest.raises(RefusedRequestError, match=f"status {status}: no logprobs here"):
            [*server.stream("/v1/completions", {})]


def test_a_failure_and_an_error_within_a_stream() -> None:
    with answering(500, b"<html>out of memory</html>") as server:
        with pytest.raises(EndpointError, match="status 500: <html>out of memory"):
            [*server.stream("/v1/completions", {})]
    with answering(200, event(text="a") + b'data: {"error": "engine is dead"}\n\n') as server:
        with pytest.raises(EndpointError, match="engine is dead"):
            [*server.stream("/v1/completions", {})]


@pytest.mark.parametrize(
    "body", [b"no json", b"[1]", b'{"data": 3}', b'{"data": {"id": "m"}}', b"[" * 100_000]
)
def test_a_list_of_models_that_is_none(body: bytes) -> None:
    with answering(200, body) as server, pytest.raises(EndpointError, match="/v1/models"):
        server.models()


HOSTILE = [
    b"data: 3\n\n",
    b'data: {"choices": 3}\n\ndata: {"choices": [3]}\n\n',
    event(text=3, token_ids={"a": 1}, prompt_token_ids="x", finish_reason=7),
    event(text="a", logprobs={"tokens": ["a"], "token_logprobs": None, "top_logprobs": [3]}),
    event(text="a", logprobs={"tokens": ["a", "b"], "token_logprobs": [float("nan")]}),
    event(text="a", logprobs="none"),
    b'data: {"choices": [], "usage": {"prompt_tokens": "many"}}\n\n',
]


@pytest.mark.parametrize("body", HOSTILE)
def test_what_servers_may_send_is_read(body: bytes) -> None:
    with answering(200, body) as server:
        found = read_answer(server.stream("/v1/completions", {}))
    assert len(found.logprobs) in (0, len(found.tokens)) and len(found.tops) == len(found.logprobs)
    assert all(token in top for token, top in zip(found.tokens, found.tops, strict=False))


def test_a_server_without_metrics_has_none() -> None:
    with answering(404, b"") as server:
        assert server.get_text("/metrics") is None


def test_every_optional_field_is_left_out_where_it_is_refused() -> None:
    with answering(200, event(text="ab", finish_reason="length")) as server:
        found = find_dialect(server, "m", "prompt")
    assert not found.has_logprobs and not found.has_ids and found.words == "text, without logprobs"
    body = found.body(Ask((1, 2), 3))
    assert body["prompt"] == [1, 2] and body["temperature"] == 0 and body["ignore_eos"] is True
