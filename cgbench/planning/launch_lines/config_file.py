"""An engine's configuration file: YAML, or JSON, which is YAML too."""

import json
from pathlib import Path

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject, read_text

_MAX_BYTES = 1_000_000


def read_config(label: str, file: Path) -> JsonObject:
    """The file's keys and values. Raises ``BadInputError``, beginning with ``label``."""
    # It takes a tenth of a second to import, which only this needs.
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
    return found


def as_words(found: JsonObject) -> list[str]:
    """The file's values as words of a command line, as vLLM and SGLang read theirs."""
    words = list[str]()
    for key, value in found.items():
        name = f"--{key}"
        if isinstance(value, bool):
            words += [name] if value else [f"--no-{key}"]
        elif isinstance(value, list):
            words += [name, *map(str, value)] if value else []
        elif isinstance(value, dict):
            words += [name, json.dumps(value)]
        elif value is not None:
            words += [name, str(value)]
    return words
