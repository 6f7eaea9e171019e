"""Comma-separated flags to values."""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from cgbench.errors import BadInputError
from cgbench.inputs import shown, shown_whole
from cgbench.words import Scope

# Python reads other digits too, underscores between them, and none of 5,000.
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def check_utf8(arguments: Sequence[str]) -> None:
    """Raises ``BadInputError`` for an argument whose bytes are no UTF-8, naming its flag.

    Records, tables and the libraries that read checkpoints know no other names of files.
    """
    for before, argument in pairwise(["", *arguments]):
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            flag = before if before.startswith("--") else "argument"
            text = os.fsencode(argument).decode(errors="backslashreplace")
            raise BadInputError(
                f"{flag} {shown_whole(text)}: is not UTF-8; rename the file or folder"
            ) from error


def parse_ints(flag: str, text: str) -> tuple[int, ...]:
    """``1,2,4`` to ascending distinct integers.

    Raises ``BadInputError`` naming the flag.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(map(_WHOLE.fullmatch, parts)):
        raise BadInputError(
            f"{flag} {shown(text)}: must be whole numbers separated by commas, such as 1,2,4"
        )
    return tuple(sorted(set(map(int, parts))))


def parse_optional_ints(flag: str, text: str | None) -> list[int]:
    """As ``parse_ints``, for a flag that may be left out."""
    return [] if text is None else [*parse_ints(flag, text)]


def parse_names(text: str | None) -> list[str]:
    """``a,b`` to names, in the order given; empty for a flag that was left out."""
    return [] if text is None else [part.strip() for part in text.split(",")]


def check_known(flag: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises ``BadInputError`` for the first of ``names`` that is not ``known``."""
    if unknown := [name for name in names if name not in known]:
        raise BadInputError(f"{flag} {unknown[0]}: unknown; choose of {','.join(known)}")


_TOO_MANY_BYTES = 1e18


def parse_bytes(flag: str, text: str) -> int:
    """``512MiB``, ``2GB`` or a plain number of bytes.

    Raises ``BadInputError`` naming the flag.
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
    """``2%`` or ``0.02`` to 0.02: above 0 and below 1.

    ``example`` is a good value of the flag, for its refusal. Raises ``BadInputError`` naming the
    flag.
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
    """``eager,phase`` to scopes, in the order of the enum.

    Raises ``BadInputError`` for a name that is none.
    """
    names = set(parse_names(text))
    check_known("--scopes", sorted(names), [scope.value for scope in Scope])
    return tuple(scope for scope in Scope if scope.value in names)
