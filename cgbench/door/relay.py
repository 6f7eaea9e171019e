"""Show the progress of another process here. Each call is a line of JSON that is replayed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from cgbench.progress import SILENT, Bar, Progress


@dataclass(frozen=True, slots=True)
class Relay:
    """A ``Relay`` is a progress, and a bar, for a process whose progress another one shows. It
    writes each call to ``to``.
    """

    to: TextIO

    def say(self, text: str) -> None:
        self._send("say", text)

    def log(self, text: str) -> None:
        self._send("log", text)

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        self._send("working", title)
        yield
        self._send("end")

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        self._send("bar", title, total)
        yield self
        self._send("end")

    def at(self, title: str) -> None:
        self._send("at", title)

    def advance(self) -> None:
        self._send("advance")

    def fail(self, reason: str) -> None:
        """Report why nothing more comes."""
        self._send("fail", reason)

    def _send(self, *call: str | int) -> None:
        print(json.dumps(call), file=self.to, flush=True)


def replay(lines: Iterator[str], progress: Progress, bar: Bar = SILENT) -> str | None:
    """Make the calls of ``lines`` until they end, or until what was begun ends.

    Return the reason if the other process has failed, else None.
    """
    reason = None
    for line in lines:
        match json.loads(line):
            case ["say", text]:
                progress.say(text)
            case ["log", text]:
                progress.log(text)
            case ["at", title]:
                bar.at(title)
            case ["advance"]:
                bar.advance()
            case ["working", title]:
                with progress.working(title):
                    reason = replay(lines, progress)
            case ["bar", title, total]:
                with progress.bar(title, total) as opened:
                    reason = replay(lines, progress, opened)
            case ["fail", text]:
                reason = str(text)
            case ["end"]:
                return None
        if reason is not None:
            return reason
    return None
