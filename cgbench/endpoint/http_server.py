"""Reach a server behind a URL, with the standard library alone.

Environment variables that name a proxy are not read, because a proxy would stand between the audit
and the server whose batches it fills.
"""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cgbench.errors import BadInputError, EndpointError
from cgbench.inputs import JsonObject, shown

CONNECT_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 16 * 2**20
"""More than any list of models or page of metrics, and than one line of a stream."""

_REFUSED = (400, 404, 405, 422)


class RefusedRequestError(EndpointError):
    """A ``RefusedRequestError`` is raised if the status of an answer blames the request."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address locates a server.

    ``flag`` names it in messages. ``path`` is the part of the URL before ``/v1``.
    """

    flag: str
    url: str
    host: str
    port: int
    path: str
    is_tls: bool

    @classmethod
    def parse(cls, flag: str, url: str) -> "Address":
        """Read a URL such as ``http://host:8000``, with or without ``/v1``.

        Raise ``BadInputError`` if it is no such URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadInputError(f"{flag} {shown(url)}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInputError(f"{flag} {shown(url)}: must be a URL such as http://localhost:8000")
        if parts.username or parts.query or parts.fragment:
            raise BadInputError(
                f"{flag} {shown(parts.hostname)}: must hold no user, query or fragment. "
                "A key is read from --api-key-env"
            )
        is_tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(flag, url, parts.hostname, port or (443 if is_tls else 80), path, is_tls)


@dataclass(frozen=True, slots=True)
class Server:
    """A ``Server`` sends HTTP requests to one address.

    ``timeout_s`` is how long the other side may be silent.
    """

    address: Address
    api_key: str | None = None
    timeout_s: float = 60.0
    _connections: set[http.client.HTTPConnection] = field(
        default_factory=set, init=False, repr=False, compare=False
    )
    _is_over: threading.Event = field(
        default_factory=threading.Event, init=False, repr=False, compare=False
    )

    def hang_up(self) -> None:
        """End every request that is under way in another thread, and begin none any more."""
        self._is_over.set()
        for connection in [*self._connections]:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def get_text(self, path: str) -> str | None:
        """Return the text at a path, or None if the server has no such page.

        Raise ``EndpointError`` if the server cannot be reached.
        """
        with self._answer("GET", path, None) as answer:
            body = answer.read(MAX_BODY_BYTES)
            return None if answer.status != 200 else body.decode("utf-8", errors="replace")

    def models(self) -> list[str]:
        """Return the names of the models that are served, the first one first.

        Raise ``EndpointError`` if the server cannot be reached or lists none.
        """
        text = self.get_text("/v1/models")
        listed = None if text is None else _parsed(text).get("data")
        if not isinstance(listed, list):
            raise EndpointError(
                f"{self._name}: /v1/models lists no model. Is this an OpenAI-compatible server?"
            )
        return [str(each["id"]) for each in listed if isinstance(each, dict) and "id" in each]

    def stream(self, path: str, body: Mapping[str, object]) -> Iterator[tuple[float, JsonObject]]:
        """Yield each event of a streamed answer with the time at which it came, in seconds.

        Raise ``RefusedRequestError`` if the request is refused, and ``EndpointError`` if it fails.
        """
        with self._answer("POST", path, body) as answer:
            if answer.status != 200:
                raise self._failed(answer)
            while line := answer.readline(MAX_BODY_BYTES):
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                event = _parsed(data.decode("utf-8", errors="replace"))
                if "error" in event:
                    raise EndpointError(f"{self._name}: {_message(event)}")
                yield time.perf_counter(), event

    @property
    def _name(self) -> str:
        return f"{self.address.flag} {self.address.url}"

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        self._connections.add(connection)
        try:
            connection.connect()
            if self._is_over.is_set():
                raise EndpointError(f"{self._name}: interrupted")
            if connection.sock is not None:
                connection.sock.settimeout(self.timeout_s)
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self.address.path + path, content, self._headers())
            yield connection.getresponse()
        except TimeoutError as error:
            raise EndpointError(
                f"{self._name}: no answer for {self.timeout_s:g} s. Raise --timeout"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise EndpointError(f"{self._name}: {reason.splitlines()[0]}") from error
        finally:
            self._connections.discard(connection)
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        if self.address.is_tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                host, port, timeout=CONNECT_TIMEOUT_S, context=context
            )
        return http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, */*"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers

    def _failed(self, answer: http.client.HTTPResponse) -> EndpointError:
        text = answer.read(MAX_BODY_BYTES).decode("utf-8", errors="replace")
        words = f"{self._name}: status {answer.status}: {_message(_parsed(text)) or shown(text)}"
        kind = RefusedRequestError if answer.status in _REFUSED else EndpointError
        return kind(words)


def _parsed(text: str) -> JsonObject:
    """Return the object in somebody else's JSON, empty if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _message(event: JsonObject) -> str:
    """Return the message of an error, wherever servers put it."""
    error = event.get("error", event)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return shown(error) if error else ""
