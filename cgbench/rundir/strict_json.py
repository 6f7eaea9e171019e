"""JSON as it was written by a program: no key twice, no number that is none, no broken text.

Written against the standard library alone.
"""

import json
import re
from collections.abc import Iterable
from math import isfinite
from typing import Any

MAX_DEPTH = 32
"""Lists and objects within each other: far more than anything of ours has."""

MAX_INTEGER = 2**64

# What XML cannot hold, and what a terminal would obey.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


def loads(text: str) -> Any:
    """The value of ``text``.

    Raises ``ValueError`` with one line where it is not JSON, has a key twice, ``NaN`` or an
    infinity, an integer past 64 bits, half a surrogate pair, a control character that is no white
    space, or more than ``MAX_DEPTH`` levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise _too_deep() from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!a} is there twice")
    return made


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _check(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        level = [inner for each in level for inner in _checked(each)]
    raise _too_deep()


def _checked(value: Any) -> Iterable[Any]:
    """What ``value`` holds, itself looked at."""
    match value:
        case dict():
            return [*value, *value.values()]
        case list():
            return value
        case str():
            _check_text(value)
        case float() if not isfinite(value):
            raise ValueError("a number is too large")
        case int() if abs(value) >= MAX_INTEGER:
            raise ValueError("a whole number has more than 64 bits")
    return ()


def _check_text(text: str) -> None:
    if _CONTROL.search(text):
        raise ValueError(f"text {text[:40]!a} holds a control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"text {text[:40]!a} holds half a surrogate pair") from None
