"""Read an engine's configuration file: YAML, or JSON, which is YAML too."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject, read_text

_MAX_BYTES = 1_000_000
_MAX_VALUES = 100_000


def read_config(label: str, file: Path) -> JsonObject:
    """Return the file's keys and values. Raise ``BadInputError``, beginning with ``label``."""
    # Its import takes a tenth of a second, and only this function needs it.
    import yaml

    text = read_text(f"{label} {file}", file, _MAX_BYTES)
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise BadInputError(f"{label} {file}: is not YAML{where}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BadInputError(f"{label} {file}: must hold names and values")
    if next(islice(_inner(found), _MAX_VALUES, None), None) is not None:
        raise BadInputError(f"{label} {file}: its aliases stand for over {_MAX_VALUES:,} values")
    return found


def _inner(value: object) -> Iterator[object]:
    """Yield every value in a value. An alias counts wherever it stands."""
    yield value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _inner(each)


def as_words(found: JsonObject, *, negates: bool) -> list[str]:
    """Return the file's values as words of a command line, as vLLM and SGLang read theirs.

    With ``negates`` a false value becomes the option's negative. Without it such a value is left
    out.
    """
    words = list[str]()
    for key, value in found.items():
        name = f"--{key}"
        if isinstance(value, bool):
            words += [name] if value else [f"--no-{key}"] * negates
        elif isinstance(value, list):
            words += [name, *map(str, value)] if value else []
        elif isinstance(value, dict):
            words += [name, json.dumps(value)]
        elif value is not None:
            words += [name, str(value)]
    return words
