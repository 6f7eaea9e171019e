"""Requests that are sent together, and what becomes of them at Ctrl-C."""

import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from cgbench.endpoint.answers import Ask
from cgbench.endpoint.dialect import Dialect
from cgbench.endpoint.http_server import Address, Server
from cgbench.endpoint.traffic import Flow
from cgbench.errors import EndpointError

TIMEOUT_S = 60.0


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A shell lets what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_waits_for_no_answer() -> None:
    """A server takes three requests and is silent. All of them end long before the time-out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = Server(Address.parse("--endpoint", f"http://127.0.0.1:{port}"), None, TIMEOUT_S)
        held: list[socket.socket] = []
        caller = threading.get_ident()

        def hold() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                connection.recv(1)
                held.append(connection)
            signal.pthread_kill(caller, signal.SIGINT)

        holder = threading.Thread(target=hold)
        holder.start()
        ended = threading.Event()
        late = threading.Timer(TIMEOUT_S / 4, lambda: ended.is_set() or listener.close())
        late.start()
        with pytest.raises(KeyboardInterrupt):
            Flow(server, Dialect("m", {}, False, False)).together(
                [Ask("The", 4)] * 3, [0.0, 0.0, 0.01]
            )
        ended.set()
        assert late.is_alive(), "the interrupt waited for answers"
        late.cancel()
        holder.join()
        for connection in held:
            connection.close()
        with pytest.raises(EndpointError, match="interrupted"):
            server.get_text("/v1/models")
