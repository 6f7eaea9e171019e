"""How a long call reports what it is doing: a protocol, and the silence that is its default."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """A progress bar that is shown."""

    def at(self, title: str) -> None:
        """Name the step that begins."""
        ...

    def advance(self) -> None:
        """Count a step that is done."""
        ...


class Progress(Protocol):
    """Where a call reports what it is doing. Nothing is printed by any other way.

    Bars and work without steps do not overlap. With several ranks the object is pickled, and the
    first rank alone reports.
    """

    def say(self, text: str) -> None:
        """Report a line that a person should read, such as a warning."""
        ...

    def log(self, text: str) -> None:
        """Report a line that a bar or spinner replaces where one is shown."""
        ...

    def working(self, title: str) -> AbstractContextManager[None]:
        """Show ``title`` while something without steps is done."""
        ...

    def bar(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """Show a bar of ``total`` steps while they are done."""
        ...


class Silent:
    """The progress, and the bar, that show nothing."""

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
