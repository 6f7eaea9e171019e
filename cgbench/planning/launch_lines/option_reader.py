"""Words of a command line to options, as ``argparse`` and its users read them."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cgbench.errors import BadInputError
from cgbench.inputs import MAX_WHOLE, JsonObject, check_whole, shown

_NUMBER = re.compile(r"-[0-9.]+")

# What a word processor makes of a dash.
_OTHER_DASHES = tuple("\u2010\u2011\u2012\u2013\u2014\u2015\u2212")

# Options of any engine that take several words and change no graph. Others take one at most.
_TAKES_LISTS = {"--served-model-name", "--allowed-origins", "--lora-target-modules", "--middleware"}


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

    def add_word(self, word: str) -> None:
        """A word that no option takes: the first is the model, and the engine reads no second."""
        (self.unknown if self.positional else self.positional).append(word)

    def drop(self, values: Collection[str]) -> None:
        """Forget the options that have one of these values, which mean the default."""
        kept = self.values.items()
        self.values = {k: v for k, v in kept if not (isinstance(v, str) and v in values)}

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


def read(words: Sequence[str], specs: Sequence[Spec], harmless: frozenset[str]) -> Options:
    """Options by their specification. A word with a dash that none names is unknown, with the
    values after it, unless it is ``harmless``. So is every word without a dash after the first,
    which is the model.

    A unique beginning of a long name stands for it. Raises ``BadInputError`` for a value that is
    missing, and for one that a flag does not take.
    """
    by_name = {name: spec for spec in specs for name in spec.names}
    found, rest = Options(), list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith(_OTHER_DASHES):
            raise BadInputError(f"{shown(word)}: begins with {word[0]}; type a plain - there")
        if not is_option(word):
            found.add_word(word)
            continue
        name, equals, attached = word.partition("=")
        spec, is_negative = _spec(name, by_name)
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
    """Whether a word of a line names an option: it begins with a dash and is no number."""
    return word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word)


def whole(
    name: str,
    value: object,
    least: int = 1,
    parse: Callable[[str], int] | None = None,
    most: int = MAX_WHOLE,
) -> int:
    """A whole number from ``least`` to ``most``. Raises ``BadInputError`` naming the option."""
    text = str(value).strip()
    try:
        number = (parse or int)(text)
    except (ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool | float):
        raise BadInputError(f"{name} {shown(text)}: must be a whole number of at least {least}")
    check_whole(name, number, least, most)
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
