"""Read what flags state in text as values: lists, sizes, shares, and whole requests."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from cgbench.errors import BadInputError
from cgbench.inputs import check_known, shown, shown_whole
from cgbench.request.keys import Recorded, Share, Value, values_of
from cgbench.words import Scope

_R = TypeVar("_R", bound=Recorded)

# Python also reads other digits, and underscores between them, but it refuses a number of 5,000
# digits.
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")

_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


def check_utf8(arguments: Sequence[str]) -> None:
    """Raise ``BadInputError``, which names the flag, for an argument whose bytes are not UTF-8.

    Records, tables and the libraries that read checkpoints accept no other names of files.
    """
    for before, argument in pairwise(["", *arguments]):
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            flag = before if before.startswith("--") else "argument"
            text = os.fsencode(argument).decode(errors="backslashreplace")
            raise BadInputError(
                f"{flag} {shown_whole(text)}: is not UTF-8. Rename the file or folder"
            ) from error


def parse_ints(flag: str, text: str) -> tuple[int, ...]:
    """Return ascending distinct integers from a text such as ``1,2,4``.

    Raise ``BadInputError``, which names the flag, for anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(map(_WHOLE.fullmatch, parts)):
        raise BadInputError(
            f"{flag} {shown(text)}: must be whole numbers separated by commas, such as 1,2,4"
        )
    return tuple(sorted(set(map(int, parts))))


DENSER_FROM = 16
"""From here on a sparse grid has two sizes for each doubling."""


def parse_grid(flag: str, text: str) -> tuple[int, ...]:
    """Return ascending distinct integers from a text as ``parse_ints`` reads, or with ranges.

    A range such as ``1-64`` is a sparse grid: its ends and the powers of two between. Above 16 it
    has the middles between those too, because large batches take time in steps of their tokens.
    Raise ``BadInputError``, which names the flag, for anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    ranges = [match for part in parts if (match := _RANGE.fullmatch(part))]
    plain = ",".join(part for part in parts if not _RANGE.fullmatch(part))
    found = {*parse_ints(flag, plain)} if plain or not ranges else set[int]()
    for match in ranges:
        first, last = map(int, match.groups())
        if first >= last:
            raise BadInputError(f"{flag} {match[0]}: a range must rise, such as 1-64")
        powers = [2**i for i in range(last.bit_length())]
        middles = [power * 3 // 2 for power in powers if power >= DENSER_FROM]
        found |= {first, last, *(n for n in (*powers, *middles) if first < n < last)}
    return tuple(sorted(found))


def parse_names(text: str) -> list[str]:
    """Return the names in a text such as ``a,b``, in the order given."""
    return [part.strip() for part in text.split(",")]


_TOO_MANY_BYTES = 1e18


def parse_bytes(flag: str, text: str) -> int:
    """Return the bytes that ``512MiB``, ``2GB`` or a plain number states.

    Raise ``BadInputError``, which names the flag, for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", text.strip(), re.IGNORECASE)
    if not found:
        raise BadInputError(f"{flag} {text}: must be a size such as 512MiB or 2GB")
    number, unit = found.groups()
    base = 1024 if unit and unit.lower().endswith("i") else 1000
    power = "KMGT".index(unit[0].upper()) + 1 if unit else 0
    num_bytes = float(number) * base**power
    if num_bytes >= _TOO_MANY_BYTES:
        raise BadInputError(f"{flag} {number[:20]}..: must be below {_TOO_MANY_BYTES:g} bytes")
    return int(num_bytes)


def parse_fraction(flag: str, text: str, example: str = "2% or 0.02") -> float:
    """Return the share in a text such as ``2%`` or ``0.02``, as a number above 0 and below 1.

    ``example`` is a good value of the flag, which its refusal names. Raise ``BadInputError``, which
    names the flag, for anything else.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = 0.0
    if rest or not 0 < value < 1:
        raise BadInputError(
            f"{flag} {shown(text)}: must be a share such as {example}, above 0 and below 100%"
        )
    return value


def parse_scopes(text: str) -> tuple[Scope, ...]:
    """Return the scopes in a text such as ``eager,phase``, in the order of the enum.

    Raise ``BadInputError`` for an unknown name.
    """
    names = set(parse_names(text))
    check_known("--scopes", sorted(names), [scope.value for scope in Scope])
    return tuple(scope for scope in Scope if scope.value in names)


_TEXTS: dict[Any, Callable[[str, str], object]] = {
    tuple[int, ...]: parse_ints,
    tuple[str, ...]: lambda _, text: tuple(parse_names(text)),
    tuple[Scope, ...]: lambda _, text: parse_scopes(text),
    Share: lambda flag, text: parse_fraction(flag, text, "0.5% or 0.005"),
}
"""How each type of value is read if a flag states it in text."""


def asked(request: type[_R], given: Mapping[str, object]) -> _R:
    """Return the request that a command's parameters give, each under its key in records.

    Parameters that are no part of the request are ignored. Raise ``BadInputError``, which names the
    flag, for a text that states no value.
    """
    values = [value for value in values_of(request) if value.key in given]
    return request.of({value.key: _stated(value, given[value.key]) for value in values})


def _stated(value: Value, given: object) -> object:
    parse = _TEXTS.get(value.kind)
    if parse is None or (given is None and value.may_be_none):
        return given
    if given is None:
        return ()
    return parse(value.flag, given) if isinstance(given, str) else given
