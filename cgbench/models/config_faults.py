"""Turn what transformers raises about a config into one line that names the field."""

import re
from collections.abc import Iterator

from huggingface_hub.errors import StrictDataclassError

from cgbench.inputs import JsonObject, shown

# How names of settings of each layer end, but for those that transformers counts itself.
_OF_LAYERS = ("_types", "_limits", "_limits_shared", "_pattern", "_freq", "_factors", "_theta")


def fault_of(error: Exception, raw: JsonObject) -> str:
    """Return in one line what transformers found wrong with ``raw``, a config's content.

    The line names the field if it can. transformers' checks of types have the useful part in their
    second line. A ``KeyError`` is a word that one of its tables lacks.
    """
    if isinstance(error, StrictDataclassError):
        return _of_check(error)
    if isinstance(error, KeyError) and error.args:
        return _of_key(error.args[0], raw)
    if isinstance(error, IndexError) and (short := _short_list(raw)) is not None:
        return short
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if literal := re.search(r"invalid literal for .*: '(.+)'$", lines[0]):
        texts = ((path, value) for path, value in _leaves("", raw) if isinstance(value, str))
        fields = (path for path, text in texts if literal[1] in re.split(r"[,\s]+", text))
        return f"{next(fields, 'a field')}: {shown(literal[1])} is no number"
    return lines[0]


def _of_key(key: object, raw: JsonObject) -> str:
    """A word that one of transformers' tables lacks, or one of the config's own. Some of its errors
    of keys are whole sentences."""
    if isinstance(key, str) and " " in key:
        return key.strip().splitlines()[0]
    for path, value in _leaves("", raw):
        if value == key:
            return f"{path}: {shown(key)} is unknown to transformers"
        if isinstance(value, list) and key in value and path.endswith("layer_types"):
            return f"{shown(key)}, of {path}, has no entry in a field that has one a type of layer"
    return f"{shown(key)} is unknown to transformers"


def _short_list(raw: JsonObject) -> str | None:
    """The first list with an entry a layer that has too few, found by its name."""
    text = raw.get("text_config") or raw
    count = text.get("num_hidden_layers")
    for name, value in text.items():
        is_of_layers = isinstance(value, list) and name.endswith(_OF_LAYERS)
        if is_of_layers and isinstance(count, int) and len(value) < count:
            return f"{name}: has {len(value)} of the {count} entries that num_hidden_layers wants"
    return None


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
