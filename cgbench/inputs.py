"""Check what every input shares: numbers within bounds, files of bounded size, and JSON."""

import json
import re
import stat
from collections.abc import Collection, Iterable
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

from cgbench.errors import BadInputError

JsonObject: TypeAlias = dict[str, Any]
"""This is an object of a JSON file that somebody else wrote, or that has yet to be checked."""

MAX_WHOLE = 2**31 - 1
"""A flag or field may count this much at most, because tensors have 32-bit indices."""

MAX_SHOWN = 60
"""An error line shows at most this many characters of a bad value."""

MAX_DEPTH = 32
"""Lists and objects of our own files may be nested at most this deep.

That is far more than any of them needs.
"""

MAX_INTEGER = 2**64

# XML cannot hold these characters, and a terminal would obey some of them.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_SURROGATES = range(0xD800, 0xE000)


def shown(value: object) -> str:
    """Return a bad value as an error line shows it.

    Text stays text, and anything else becomes JSON. The result is one line and is cut if it is
    long.
    """
    text = shown_whole(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


def shown_whole(text: str) -> str:
    """Return the name of a file as an error line shows it: uncut, with unprintable characters
    escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_whole(flag: str, value: int, least: int, most: int = MAX_WHOLE) -> None:
    """Check that a flag's ``value`` is from ``least`` to ``most``. Raise ``BadInputError`` if it is
    not."""
    if value < least:
        raise BadInputError(f"{flag} {shown(value)}: must be at least {least}")
    if value > most:
        raise BadInputError(f"{flag} {shown(value)}: must be at most {most:,}")


def check_share(flag: str, share: float) -> None:
    """Check that a flag's ``share`` is above 0 and below 1. Raise ``BadInputError`` if not."""
    if not 0 < share < 1:
        raise BadInputError(f"{flag} {share:g}: must be above 0 and below 1")


def check_known(flag: str, names: Iterable[str], known: Collection[str]) -> None:
    """Check that all ``names`` are ``known``. Raise ``BadInputError`` for the first that is not."""
    if unknown := [name for name in names if name not in known]:
        raise BadInputError(f"{flag} {unknown[0]}: unknown. Choose of {','.join(known)}")


def check_file(
    label: str, file: Path, most_bytes: int, error: type[BadInputError] = BadInputError
) -> None:
    """Check that ``file`` is a regular file of at most ``most_bytes``, before it is opened.

    A pipe would wait for its writer, and a huge file would fill the memory. Raise ``error`` if the
    check fails. Its message starts with ``label``.
    """
    try:
        status = file.stat()
    except (OSError, ValueError) as problem:
        raise error(f"{label}: {_reason(problem)}") from problem
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{label}: must be a file, this is {_kind(status.st_mode)}")
    if status.st_size > most_bytes:
        raise error(f"{label}: {status.st_size:,} bytes, must be at most {most_bytes:,}")


def read_text(
    label: str,
    file: Path,
    most_bytes: int,
    error: type[BadInputError] = BadInputError,
    encoding: str = "utf-8",
) -> str:
    """Return the text of a file that passes ``check_file``.

    Raise ``error`` if it does not pass, cannot be read, or is not in ``encoding``.
    """
    check_file(label, file, most_bytes, error)
    try:
        return file.read_text(encoding=encoding)
    except OSError as problem:
        raise error(f"{label}: {_reason(problem)}") from problem
    except UnicodeDecodeError as problem:
        at = f"byte {problem.start} ({problem.object[problem.start]:#04x})"
        raise error(f"{label}: must be utf-8. {at} is not") from problem


def _reason(problem: Exception) -> str:
    """Return why a file cannot be read.

    An ``OSError``'s own text would name the file a second time.
    """
    reason = problem.strerror if isinstance(problem, OSError) else None
    return reason or str(problem)


def _kind(mode: int) -> str:
    names = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in names.items() if is_kind(mode)), "a device")


class _RepeatedKeyError(ValueError):
    """This error means that an object has one key twice, so nobody can know which value is
    meant."""


def parse_json(label: str, text: str, error: type[BadInputError] = BadInputError) -> Any:
    """Return the content of JSON text that somebody else wrote. Numbers may be NaN or infinite.

    Raise ``error`` if the text is not JSON, is nested too deep or has a key twice. An integer of
    over 4,300 digits is refused too. The message starts with ``label``.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as problem:
        raise error(f"{label}: is not JSON: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{label} is nested too deep") from problem
    except _RepeatedKeyError as problem:
        raise error(f"{label}: {problem}") from problem
    except ValueError as problem:
        # Python reads no number of more digits, and its own message is about Python.
        raise error(f"{label} holds a number of over 4,300 digits") from problem


def parse_own_json(text: str) -> Any:
    """Return the content of JSON text that cgbench wrote.

    Raise ``ValueError`` with one line if it is not JSON, has a key twice, or more than
    ``MAX_DEPTH`` levels. Numbers must be finite and within 64 bits. Text must not hold half of a
    surrogate pair. Control characters are refused, except tab, line feed and carriage return.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise _too_deep() from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"key {twice!a} is there twice")
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
    """Check ``value`` itself, and return the values inside it."""
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


def lone_surrogate(text: str) -> str | None:
    """Return the first lone surrogate in ``text`` as JSON escapes it, or None if there is none.

    JSON can state half of a surrogate pair, and nothing can encode it.
    """
    if text.isascii():
        return None
    found = next((char for char in text if ord(char) in _SURROGATES), None)
    return None if found is None else f"\\u{ord(found):04x}"
