"""Read what every input shares: numbers within bounds, files of bounded size, and JSON."""

import json
import re
import stat
from collections.abc import Collection, Iterable
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

from cgbench.errors import BadInputError

JsonObject: TypeAlias = dict[str, Any]
"""An object of a JSON file that somebody else wrote, or that has yet to be checked."""

MAX_WHOLE = 2**31 - 1
"""The most that a flag or field may count: what 32-bit indices of tensors reach."""

MAX_SHOWN = 60
"""Characters of a bad value that an error line shows."""

MAX_DEPTH = 32
"""Lists and objects within each other: far more than anything of ours has."""

MAX_INTEGER = 2**64

# What XML cannot hold, and what a terminal would obey.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_SURROGATES = range(0xD800, 0xE000)


def shown(value: object) -> str:
    """A bad value as an error line shows it: text, or anything else as JSON, on one line, cut if
    long."""
    text = shown_whole(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


def shown_whole(text: str) -> str:
    """The name of a file as an error line shows it: uncut, what cannot be printed escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_whole(flag: str, value: int, least: int, most: int = MAX_WHOLE) -> None:
    """Raises ``BadInputError`` where a flag's ``value`` is not ``least`` to ``most``."""
    if value < least:
        raise BadInputError(f"{flag} {shown(value)}: must be at least {least}")
    if value > most:
        raise BadInputError(f"{flag} {shown(value)}: must be at most {most:,}")


def check_known(flag: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises ``BadInputError`` for the first of ``names`` that is not ``known``."""
    if unknown := [name for name in names if name not in known]:
        raise BadInputError(f"{flag} {unknown[0]}: unknown; choose of {','.join(known)}")


def check_file(
    label: str, file: Path, most_bytes: int, error: type[BadInputError] = BadInputError
) -> None:
    """Refuse what is no regular file of at most ``most_bytes``, before it is opened.

    A pipe would wait for its writer, and a huge file would fill the memory. Raises ``error``, whose
    message starts with ``label``.
    """
    try:
        status = file.stat()
    except (OSError, ValueError) as problem:
        raise error(f"{label}: {_reason(problem)}") from problem
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{label}: must be a file; this is {_kind(status.st_mode)}")
    if status.st_size > most_bytes:
        raise error(f"{label}: {status.st_size:,} bytes, must be at most {most_bytes:,}")


def read_text(
    label: str,
    file: Path,
    most_bytes: int,
    error: type[BadInputError] = BadInputError,
    encoding: str = "utf-8",
) -> str:
    """The text of a file that ``check_file`` does not refuse. Raises ``error`` as it does."""
    check_file(label, file, most_bytes, error)
    try:
        return file.read_text(encoding=encoding)
    except OSError as problem:
        raise error(f"{label}: {_reason(problem)}") from problem
    except UnicodeDecodeError as problem:
        at = f"byte {problem.start} ({problem.object[problem.start]:#04x})"
        raise error(f"{label}: must be utf-8; {at} is not") from problem


def _reason(problem: Exception) -> str:
    """Why a file cannot be read. An ``OSError``'s own text would name the file a second time."""
    reason = problem.strerror if isinstance(problem, OSError) else None
    return reason or str(problem)


def _kind(mode: int) -> str:
    names = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in names.items() if is_kind(mode)), "a device")


class _RepeatedKeyError(ValueError):
    """An object that has one key twice: which of its values is meant cannot be known."""


def parse_json(label: str, text: str, error: type[BadInputError] = BadInputError) -> Any:
    """What JSON text of somebody else holds; numbers may be NaN or infinite.

    Raises ``error``, whose message starts with ``label``.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as problem:
        raise error(f"{label} is not JSON: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{label} is nested too deep") from problem
    except _RepeatedKeyError as problem:
        raise error(f"{label}: {problem}") from problem
    except ValueError as problem:
        # Python reads no number of more digits; its message is about Python.
        raise error(f"{label} holds a number of over 4,300 digits") from problem


def parse_own_json(text: str) -> Any:
    """What JSON text that cgbench wrote holds.

    Raises ``ValueError`` with one line if it is not JSON, has a key twice, or more than
    ``MAX_DEPTH`` levels. Numbers must be finite and within 64 bits. Text has no half of a surrogate
    pair, and no control character that is no white space.
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


def lone_surrogate(text: str) -> str | None:
    """The first half of a surrogate pair that ``text`` holds alone, as JSON escapes it.

    JSON can state one, and nothing can encode it.
    """
    if text.isascii():
        return None
    found = next((char for char in text if ord(char) in _SURROGATES), None)
    return None if found is None else f"\\u{ord(found):04x}"
