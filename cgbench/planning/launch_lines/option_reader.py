"""Turn the words of a command line into options, as ``argparse`` and its users read them."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cgbench.errors import BadInputError
from cgbench.inputs import MAX_WHOLE, JsonObject, check_whole, shown
from cgbench.planning.launch_lines.lost_quotes import lost_quotes

_NUMBER = re.compile(r"-[0-9.]+")

# A word processor turns a dash into one of these.
_OTHER_DASHES = tuple("\u2010\u2011\u2012\u2013\u2014\u2015\u2212")

# Options of any engine that take several words and change no graph. Others take one at most.
_TAKES_LISTS = {"--served-model-name", "--allowed-origins", "--lora-target-modules", "--middleware"}


class Kind(StrEnum):
    """A ``Kind`` states how many words an option takes."""

    FLAG = "no value"
    VALUE = "one value"
    LIST = "values"


@dataclass(frozen=True, slots=True)
class Spec:
    """A ``Spec`` describes an option that the plan depends on.

    ``names`` are its dashed names, and values are kept under the first of them. ``has_negative``
    allows its ``--no-`` form.
    """

    names: tuple[str, ...]
    kind: Kind = Kind.VALUE
    has_negative: bool = False


@dataclass
class Options:
    """An ``Options`` holds what a line gives: values by an option's first name, and other words.

    ``positional`` holds the model, and ``unknown`` the words that no rule covers.
    """

    values: dict[str, str | bool | list[str]] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def add_word(self, word: str) -> None:
        """Keep a word that no option takes. The first is the model, and later ones are unknown."""
        (self.unknown if self.positional else self.positional).append(word)

    def drop(self, values: Collection[str]) -> None:
        """Remove the options that have one of these values, which mean the default."""
        kept = self.values.items()
        self.values = {k: v for k, v in kept if not (isinstance(v, str) and v in values)}

    def text(self, name: str) -> str | None:
        """Return the option's value as text, or None if it was not given."""
        value = self.values.get(name)
        return None if value is None else str(value)

    def whole(
        self,
        name: str,
        least: int = 1,
        parse: Callable[[str], int] | None = None,
        most: int = MAX_WHOLE,
    ) -> int | None:
        """Return a whole number from ``least`` to ``most``, or None if the option was not given.

        Raise ``BadInputError`` naming the option for any other value.
        """
        value = self.values.get(name)
        return None if value is None else whole(name, value, least, parse, most)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return a list of whole numbers above 0, which is empty if the option was not given.

        Raise ``BadInputError`` naming the option for any other value.
        """
        values = self.values.get(name, [])
        assert isinstance(values, list)
        return tuple(whole(name, value) for value in values)

    def is_on(self, name: str) -> bool:
        """Check that a flag was given, and not its negative."""
        return bool(self.values.get(name, False))

    def json(self, name: str) -> JsonObject:
        """Return a JSON object, which is empty if the option was not given.

        Raise ``BadInputError`` naming the option for any other value.
        """
        value = self.values.get(name)
        return {} if value is None else json_object(name, value)


def read(words: Sequence[str], specs: Sequence[Spec], harmless: frozenset[str]) -> Options:
    """Read the words of a line into options by their specification.

    A word with a dash that no specification names is unknown, with the values after it. It is
    dropped if it is ``harmless``. The first word without a dash is the model, and all later ones
    are unknown. A long name may be cut to a unique beginning. Raise ``BadInputError`` for a missing
    value, and for a value that a flag does not take.
    """
    by_name = {name: spec for spec in specs for name in spec.names}
    found, rest = Options(), list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith(_OTHER_DASHES):
            raise BadInputError(f"{shown(word)}: begins with {word[0]}. Type a plain - there")
        if not is_option(word):
            found.add_word(word)
            continue
        name, equals, attached = word.partition("=")
        spec, is_negative = spec_of(name, by_name)
        if spec is None:
            values = [attached] if equals else _values(rest)
            if not _is_harmless(name, harmless):
                found.unknown.append(" ".join([name, *values]))
            elif name not in _TAKES_LISTS:
                for other in values[1:]:
                    found.add_word(other)
            continue
        if equals and spec.kind is Kind.FLAG:
            raise BadInputError(f"{shown(word)}: {name} takes no value")
        given = [attached] if equals else _taken(spec, rest)
        _keep(found, spec, name, given, is_negative)
    return found


def _is_harmless(name: str, harmless: frozenset[str]) -> bool:
    return name in harmless or "--" + name.removeprefix("--no-") in harmless


def spec_of(name: str, by_name: Mapping[str, Spec]) -> tuple[Spec | None, bool]:
    """Return the option that a word names, and whether it is its negative.

    The option is None for a word that names none. ``by_name`` holds every name of every option.
    """
    if name in by_name:
        return by_name[name], False
    positive = by_name.get("--" + name.removeprefix("--no-"))
    if name.startswith("--no-") and positive and positive.has_negative:
        return positive, True
    begun = {id(spec): spec for known, spec in by_name.items() if known.startswith(name)}
    if name.startswith("--") and len(begun) == 1 and len(name) > len("--max"):
        return next(iter(begun.values())), False
    return None, False


def _taken(spec: Spec, rest: list[str]) -> list[str]:
    match spec.kind:
        case Kind.FLAG:
            return []
        case Kind.VALUE:
            return [rest.pop(0)] if rest and not is_option(rest[0]) else []
    return _values(rest)


def _keep(found: Options, spec: Spec, name: str, given: list[str], is_negative: bool) -> None:
    if spec.kind is Kind.FLAG:
        found.values[spec.names[0]] = not is_negative
    elif not given:
        raise BadInputError(f"{name}: needs a value")
    else:
        found.values[spec.names[0]] = given if spec.kind is Kind.LIST else given[0]


def _values(rest: list[str]) -> list[str]:
    taken = list[str]()
    while rest and not is_option(rest[0]) and not rest[0].startswith(_OTHER_DASHES):
        taken.append(rest.pop(0))
    return taken


def is_option(word: str) -> bool:
    """Check that a word of a line names an option: it begins with a dash and is no number."""
    return word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word)


def whole(
    name: str,
    value: object,
    least: int = 1,
    parse: Callable[[str], int] | None = None,
    most: int = MAX_WHOLE,
) -> int:
    """Return a whole number from ``least`` to ``most``.

    Raise ``BadInputError`` naming the option.
    """
    text = str(value).strip()
    try:
        number = (parse or int)(text)
    except (ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool | float):
        raise BadInputError(
            f"{name} {shown(text)}: must be a whole number of at least {least}{lost_quotes(text)}"
        )
    check_whole(name, number, least, most)
    return number


def json_object(name: str, value: object) -> JsonObject:
    """Return a JSON object, from its text or as a file had it.

    Raise ``BadInputError`` naming the option.
    """
    if isinstance(value, dict):
        return value
    text = str(value)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise BadInputError(
            f"{name} {shown(text)}: is not JSON: {reason}{lost_quotes(text)}"
        ) from error
    if not isinstance(found, dict):
        raise BadInputError(f"{name} {shown(text)}: must be a JSON object")
    return found


def number_list(name: str, value: object) -> tuple[int, ...]:
    """Return the whole numbers above 0 of a list in a JSON object or a file.

    Raise ``BadInputError`` naming the option for any other value.
    """
    if not (isinstance(value, list) and value):
        raise BadInputError(f"{name}: must be a list of whole numbers, such as [1, 2, 4]")
    return tuple(whole(name, each) for each in value)
