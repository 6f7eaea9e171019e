"""A progress that keeps what it was told, in order."""

from collections.abc import Iterator
from contextlib import contextmanager

from cgbench.progress import Bar


class Kept:
    """The progress, and the bar, whose ``calls`` are what was reported."""

    def __init__(self) -> None:
        self.calls: list[tuple[str | int, ...]] = []

    def say(self, text: str) -> None:
        self.calls.append(("say", text))

    def log(self, text: str) -> None:
        self.calls.append(("log", text))

    @contextmanager
    def working(self, title: str) -> Iterator[None]:
        self.calls.append(("working", title))
        try:
            yield
        finally:
            self.calls.append(("worked", title))

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        self.calls.append(("bar", title, total))
        try:
            yield self
        finally:
            self.calls.append(("done", title))

    def at(self, title: str) -> None:
        self.calls.append(("at", title))

    def advance(self) -> None:
        self.calls.append(("advance",))

    def named(self, name: str) -> list[str | int]:
        """The first argument of every call of ``name``."""
        return [call[1] for call in self.calls if call[0] == name]
