"""Arrange the words of vLLM's line as its own parser does (``vllm/utils/argparse_utils.py``)."""

import json
import re
from collections.abc import Iterator

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    unit: 2 ** (10 * power) for power, unit in enumerate("KMGT", 1)
}


def normal(words: list[str]) -> Iterator[str]:
    """Yield the words with dashes for underscores, and with other forms of options resolved.

    The forms of -O become --optimization-level. Dotted forms become one object each at the end.
    """
    dotted: dict[str, JsonObject] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            head, dot, tail = name.partition(".")
            name = head.replace("_", "-") + dot + tail
            word = name + equals + value
        if word.startswith("-O") and len(word) > 2:
            yield from ("--optimization-level", word[2:].removeprefix("="))
        elif name.startswith("-") and "." in name and not re.fullmatch(r"-[0-9.]+", name):
            text = value if equals else next(rest, None)
            if text is None:
                raise BadInputError(f"{name}: needs a value")
            _gather(dotted, name, text)
        else:
            yield word
    for name, gathered in dotted.items():
        yield from (name, json.dumps(gathered))


def human_readable(text: str) -> int:
    """Return the number that ``1k`` (1,000) or ``1K`` (1,024) means, as the engine reads a token
    budget.

    Raise ``ValueError`` for any other text that is no whole number.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([kKmMgGtT])", text)
    if not found:
        return int(text)
    number, unit = found.groups()
    # A binary unit takes no decimals.
    return int(number) * _UNITS[unit] if unit.isupper() else int(float(number) * _UNITS[unit])


def _gather(dotted: dict[str, JsonObject], name: str, text: str) -> None:
    option, *keys = name.removesuffix("+").split(".")
    at = dotted.setdefault(option, {})
    for key in keys[:-1]:
        at = at.setdefault(key, {})
        if not isinstance(at, dict):
            raise BadInputError(f"{name}: is given as a value and as an object")
    parsed = text.split(",") if name.endswith("+") else _value(text)
    before = at.get(keys[-1])
    if isinstance(before, list) and isinstance(parsed, list):
        parsed = [*before, *parsed]
    at[keys[-1]] = parsed


def _value(text: str) -> object:
    for parse in (json.loads, human_readable):
        try:
            return parse(text)
        except (ValueError, RecursionError):
            continue
    return text
