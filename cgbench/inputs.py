"""What every input shares: numbers within bounds, files of a stated size, and text that is JSON."""

import json
import stat
from pathlib import Path
from typing import Any, TypeAlias

from cgbench.errors import BadInputError

JsonObject: TypeAlias = dict[str, Any]
"""An object of a JSON file that somebody else wrote, or that has yet to be checked."""

MAX_WHOLE = 2**31 - 1
"""The most that a flag or field may count: what 32-bit indices of tensors reach."""

MAX_SHOWN = 60
"""Characters of a bad value that an error line shows."""

_SURROGATES = range(0xD800, 0xE000)


def shown(value: object) -> str:
    """A bad value as an error line shows it: text, or anything else as JSON, on one line, cut if
    long."""
    text = shown_whole(value if isinstance(value, str) else json.dumps(value))
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


def read_text(
    label: str, file: Path, most_bytes: int, error: type[BadInputError] = BadInputError
) -> str:
    """The text of a regular file of at most ``most_bytes``, looked at before it is opened.

    A pipe would wait for its writer, and a huge file would fill the memory. Raises ``error``, whose
    message starts with ``label``.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{label}: must be a file; this is {_kind(status.st_mode)}")
        if status.st_size > most_bytes:
            raise error(f"{label}: {status.st_size:,} bytes, must be at most {most_bytes:,}")
        return file.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(f"{label}: {problem.strerror or problem}") from problem
    except UnicodeDecodeError as problem:
        at = f"byte {problem.start} ({problem.object[problem.start]:#04x})"
        raise error(f"{label}: must be utf-8; {at} is not") from problem


def _kind(mode: int) -> str:
    names = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in names.items() if is_kind(mode)), "a device")


def parse_json(label: str, text: str, error: type[BadInputError] = BadInputError) -> Any:
    """What JSON text holds. Raises ``error``, whose message starts with ``label``."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise error(f"{label} is not JSON: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{label} is nested too deep") from problem
    except ValueError as problem:
        # Python reads no number of more digits; its message is about Python.
        raise error(f"{label} holds a number of over 4,300 digits") from problem


def lone_surrogate(text: str) -> str | None:
    """The first half of a surrogate pair that ``text`` holds alone, as JSON escapes it.

    JSON can state one, and nothing can encode it.
    """
    if text.isascii():
        return None
    found = next((char for char in text if ord(char) in _SURROGATES), None)
    return None if found is None else f"\\u{ord(found):04x}"
