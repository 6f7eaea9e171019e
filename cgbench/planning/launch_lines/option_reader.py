"""Words of a command line to options, as ``argparse`` and its users read them."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject, shown

_ENDS = {"&", "&&", "|", "||", ";"}
_REDIRECT = re.compile(r"[0-9&]?>")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_NUMBER = re.compile(r"-[0-9.]+")


class Kind(StrEnum):
    """How many words an option takes."""

    FLAG = "no value"
    VALUE = "one value"
    LIST = "values"


@dataclass(frozen=True, slots=True)
class Spec:
    """An option that the plan depends on: its dashed names, the first of which it is kept by."""

    names: tuple[str, ...]
    kind: Kind = Kind.VALUE
    has_negative: bool = False


@dataclass
class Options:
    """What a line holds: values by an option's first name, and the words that no rule covers."""

    values: dict[str, str | bool | list[str]] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        return None if value is None else str(value)

    def whole(
        self, name: str, least: int = 1, parse: Callable[[str], int] | None = None
    ) -> int | None:
        """A whole number of at least ``least``; None where it was not given."""
        value = self.values.get(name)
        return None if value is None else whole(name, value, least, parse)

    def numbers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers above 0; empty where it was not given."""
        values = self.values.get(name, [])
        assert isinstance(values, list)
        return tuple(whole(name, value) for value in values)

    def is_on(self, name: str) -> bool:
        return bool(self.values.get(name, False))

    def json(self, name: str) -> JsonObject:
        """A JSON object; empty where it was not given."""
        value = self.values.get(name)
        return {} if value is None else json_object(name, value)


def split(label: str, line: str) -> list[str]:
    """A shell line's words up to its first operator. Raises ``BadInputError`` naming ``label``."""
    joined = re.sub(r"\\\r?\n", " ", line)
    try:
        words = shlex.split(joined, comments="\n" in line)
    except ValueError as error:
        raise BadInputError(f"{label}: {str(error).lower()}") from error
    if not words:
        raise BadInputError(f"{label}: is empty; give the line that starts the engine")
    return [*_until_operator(words)]


def _until_operator(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word in _ENDS or _REDIRECT.match(word):
            return
        yield word


def assignments(words: Sequence[str]) -> dict[str, str]:
    """Environment variables that a line sets before its command."""
    found = (word.partition("=") for word in words if _ASSIGNMENT.fullmatch(word))
    return {name: value for name, _, value in found}


def read(words: Sequence[str], specs: Sequence[Spec], harmless: frozenset[str]) -> Options:
    """Options by their specification. A word with a dash that none names is unknown, with the
    values after it, unless it is ``harmless``.

    A unique beginning of a long name stands for it. Raises ``BadInputError`` for a value that is
    missing.
    """
    by_name = {name: spec for spec in specs for name in spec.names}
    found, rest = Options(), list(words)
    while rest:
        word = rest.pop(0)
        if not _is_option(word):
            found.positional.append(word)
            continue
        name, equals, attached = word.partition("=")
        spec, is_negative = _spec(name, by_name)
        if spec is None:
            values = [attached] if equals else _values(rest)
            if name not in harmless:
                found.unknown.append(" ".join([name, *values]))
            continue
        given = [attached] if equals else _taken(spec, rest)
        _keep(found, spec, name, given, is_negative)
    return found


def _spec(name: str, by_name: Mapping[str, Spec]) -> tuple[Spec | None, bool]:
    """The option that a word names, and whether it is its negative."""
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
            return [rest.pop(0)] if rest and not _is_option(rest[0]) else []
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
    while rest and not _is_option(rest[0]):
        taken.append(rest.pop(0))
    return taken


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word)


def whole(
    name: str, value: object, least: int = 1, parse: Callable[[str], int] | None = None
) -> int:
    """A whole number. Raises ``BadInputError`` naming the option."""
    text = str(value).strip()
    try:
        number = (parse or int)(text)
    except (ValueError, OverflowError):
        number = least - 1
    if isinstance(value, bool | float) or number < least or len(text) > 18:
        raise BadInputError(f"{name} {shown(text)}: must be a whole number of at least {least}")
    return number


def json_object(name: str, value: object) -> JsonObject:
    """A JSON object, from its text or as a file had it. Raises ``BadInputError``."""
    if isinstance(value, dict):
        return value
    try:
        found = json.loads(str(value))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise BadInputError(f"{name} {shown(str(value))}: is not JSON: {reason}") from error
    if not isinstance(found, dict):
        raise BadInputError(f"{name} {shown(str(value))}: must be a JSON object")
    return found


def number_list(name: str, value: object) -> tuple[int, ...]:
    """A list of whole numbers above 0 in a JSON object or a file. Raises ``BadInputError``."""
    if not (isinstance(value, list) and value):
        raise BadInputError(f"{name}: must be a list of whole numbers, such as [1, 2, 4]")
    return tuple(whole(name, each) for each in value)
