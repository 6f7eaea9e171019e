"""Put the option that a user typed into the messages of an engine's reader.

The readers name an option by its first name. A user may have typed another name of it, a beginning
of it, or underscores for dashes.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cgbench.errors import BadInputError, RefusedPlanError
from cgbench.planning.launch_lines.option_reader import Spec, is_option, spec_of

_LEADING = re.compile(r"-[\w-]+")


class TypedNames:
    """A ``TypedNames`` holds how each option stands in a line, by the option's first name."""

    def __init__(self, words: Sequence[str], specs: Sequence[Spec]) -> None:
        by_name = {name: spec for spec in specs for name in spec.names}
        self._typed = dict[str, str]()
        for word in filter(is_option, words):
            for typed, name in _forms(word):
                spec, is_negative = spec_of(name, by_name)
                if spec is not None and not is_negative:
                    self._typed[spec.names[0]] = typed
                    break

    def in_message(self, message: str) -> str:
        """Return ``message`` with the typed name in place of the first name that it begins with."""
        found = _LEADING.match(message)
        if found is None or found[0] not in self._typed:
            return message
        return self._typed[found[0]] + message[found.end() :]

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Put the typed names into an error that the body raises."""
        try:
            yield
        except RefusedPlanError:
            raise
        except BadInputError as error:
            message = self.in_message(str(error))
            if message == str(error):
                raise
            raise type(error)(message) from error


def _forms(word: str) -> Iterator[tuple[str, str]]:
    """Yield the name in a word as it is typed, and a name that it may stand for."""
    name = word.partition("=")[0]
    head = name.partition(".")[0]
    yield name, name
    yield head, head
    if name.startswith("--"):
        yield head, head.replace("_", "-")
    else:
        # A value may follow a short option without a blank.
        yield name[:2], name[:2]
