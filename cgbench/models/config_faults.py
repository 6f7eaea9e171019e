"""Turn what transformers raises about a config into one line that names the field."""

import re
from collections.abc import Iterator

from huggingface_hub.errors import StrictDataclassError

from cgbench.inputs import JsonObject, shown


def fault_of(error: Exception, raw: JsonObject) -> str:
    """Return in one line what transformers found wrong with ``raw``, a config's content.

    The line names the field if it can. transformers' checks of types have the useful part in their
    second line. A ``KeyError`` is a word that one of its tables lacks.
    """
    if isinstance(error, StrictDataclassError):
        return _of_check(error)
    if isinstance(error, KeyError) and error.args:
        named = [f"{path}: " for path, value in _leaves("", raw) if value == error.args[0]]
        return f"{next(iter(named), '')}{shown(error.args[0])} is unknown to transformers"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _of_check(error: StrictDataclassError) -> str:
    head, _, cause = str(error).partition("\n")
    cause = re.sub(r"^\s*\w+: ", "", cause.partition("\n")[0]).partition(". Errors:")[0]
    cause = re.sub(r"<class '(\w+)'>", r"\1", cause)
    field = re.search(r"for field '([^']+)'", head)
    return f"{field[1]}: {cause}" if field else cause or head


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for name, entry in value.items():
        yield from _leaves(f"{path}.{name}" if path else str(name), entry)
