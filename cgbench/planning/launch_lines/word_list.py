"""Read the list of words with which a container's file starts an engine: JSON, or a YAML list."""

import json
import re

_LIST = re.compile(r"\s*\[.*\]\s*|(\s*-\s+\S[^\n]*(\n|$))+\s*", re.DOTALL)


def word_list(text: str) -> list[str] | None:
    """Return the words of ``text`` if all of it is one list of words, or None for any other text.

    Numbers count as words.
    """
    if not _LIST.fullmatch(text):
        return None
    found = _loaded(text)
    words = found if isinstance(found, list) else []
    is_words = all(isinstance(word, str | int | float) for word in words)
    return [str(word) for word in words] if words and is_words else None


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    # Its import takes a tenth of a second, and few lines are lists of it.
    import yaml

    try:
        # This loader leaves every word as it is written.
        return yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
