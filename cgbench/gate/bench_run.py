"""Hold one result of a benchmark, and read its fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True)
class BenchRun:
    """A ``BenchRun`` holds one result of a tool.

    ``samples`` are seconds or tokens, one a request and in the order sent, by name of a metric.
    ``single`` are figures of the whole run. ``counts`` are (accepted, drafted) by draft position.
    ``settings`` are what was asked of the tool, in words.
    """

    tool: str
    model: str | None
    settings: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    single: Mapping[str, float] = field(default_factory=dict)
    counts: tuple[tuple[float, float], ...] = ()
    failed: int | None = None
    input_tokens: float | None = None
    hint: str = ""
    """How the tool writes samples, where this result has none."""


def number_of(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) else None


def figures_of(
    record: Mapping[str, Any], names: Mapping[str, tuple[str, float]]
) -> dict[str, float]:
    """Return the figures that a record has, in our units.

    ``names`` has for each of our names the record's key, and the factor to our unit.
    """
    found = ((name, number_of(record.get(key)), unit) for name, (key, unit) in names.items())
    return {name: value * unit for name, value, unit in found if value is not None}


def words_of(record: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that a record has, as text under the words of ``keys``."""
    return {
        words: str(record[key])
        for key, words in keys.items()
        if record.get(key) is not None and not isinstance(record[key], list | dict)
    }


def text_of(value: Any) -> str | None:
    """Return a value that is text, or None for anything else."""
    return value if isinstance(value, str) else None
