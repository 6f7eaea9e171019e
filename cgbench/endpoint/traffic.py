"""Send the requests of a probe together, and see how many of them decoded at the same time."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cgbench.endpoint.answers import Answer, Ask
from cgbench.endpoint.dialect import Dialect, ask_server
from cgbench.endpoint.http_server import Server
from cgbench.errors import EndpointError


@dataclass(frozen=True, slots=True)
class Sent:
    """A ``Sent`` holds a request and what became of it. ``error`` is set if there is no answer."""

    ask: Ask
    answer: Answer | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow is a server with the dialect that it understands."""

    server: Server
    dialect: Dialect

    def alone(self, ask: Ask) -> Sent:
        """Send one request and wait for its end."""
        try:
            return Sent(ask, ask_server(self.server, self.dialect, ask))
        except EndpointError as error:
            return Sent(ask, None, str(error))

    def together(self, asks: Sequence[Ask], delays_s: Sequence[float]) -> list[Sent]:
        """Send each request at its delay, even if others fail."""
        start = time.perf_counter()

        def at(ask: Ask, delay_s: float) -> Sent:
            time.sleep(max(start + delay_s - time.perf_counter(), 0.0))
            return self.alone(ask)

        with ThreadPoolExecutor(len(asks)) as pool:
            try:
                return [*pool.map(at, asks, delays_s)]
            except KeyboardInterrupt:
                # Else the pool's end would wait for every answer, or for --timeout.
                self.server.hang_up()
                raise


def most_at_once(answers: Sequence[Answer]) -> int:
    """Return the most answers that were decoding at one moment, between first and last token."""
    spans = [each.decoded for each in answers if each.decoded is not None]
    moments = sorted([(first, 1) for first, _ in spans] + [(last, -1) for _, last in spans])
    most = now = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def decode_seconds(answers: Sequence[Answer]) -> float:
    """Return the median time from the first token to the last one."""
    spans = sorted(last - first for first, last in filter(None, (a.decoded for a in answers)))
    return spans[len(spans) // 2] if spans else 0.0


def gap_seconds(answers: Sequence[Answer]) -> float | None:
    """Return the median gap between arrivals of all answers, or None if there is none.

    With drafts, one gap may carry several tokens.
    """
    gaps = sorted(
        after - before
        for each in answers
        for before, after in zip(each.arrivals, each.arrivals[1:], strict=False)
    )
    return gaps[len(gaps) // 2] if gaps else None
