"""Define how a long call reports what it is doing.

``Progress`` is the protocol. ``Silent`` is its default and shows nothing.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """A ``Bar`` controls a progress bar while it is shown."""

    def at(self, title: str) -> None:
        """Name the step that begins."""
        ...

    def advance(self) -> None:
        """Count a step that is done."""
        ...


class Progress(Protocol):
    """A ``Progress`` is where a call reports what it is doing. Nothing is printed in any other way.

    Bars and work without steps do not overlap. With several ranks the object is pickled, and the
    first rank alone reports.
    """

    def say(self, text: str) -> None:
        """Report a line that a person should read, such as a warning."""
        ...

    def log(self, text: str) -> None:
        """Report a line that is left out where a bar or a spinner is shown."""
        ...

    def working(self, title: str) -> AbstractContextManager[None]:
        """Show ``title`` while work without steps is done."""
        ...

    def bar(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """Show a bar of ``total`` steps while they are done."""
        ...


class Silent:
    """A ``Silent`` is a progress and a bar that show nothing."""

    def say(self, text: str) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    def working(self, title: str) -> AbstractContextManager[None]:
        return nullcontext()

    def bar(self, title: str, total: int) -> AbstractContextManager[Bar]:
        return nullcontext(self)

    def at(self, title: str) -> None:
        pass

    def advance(self) -> None:
        pass


SILENT = Silent()
