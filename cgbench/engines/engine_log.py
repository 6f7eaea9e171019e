"""Read from an engine's log what its objects do not hold: capture time, and chosen backends."""

import re
from collections.abc import Iterator

MAX_BACKENDS = 8

_CAPTURED = re.compile(r"Graph capturing finished in (\d+) secs, took (-?[\d.]+) GiB")
_BACKEND = re.compile(r"Using '?([\w.-]+)'? ((?:[\w-]+ ){0,3}?)backend\b")


def log_facts(text: str) -> dict[str, str]:
    """Return what the log states, in words: ``capture_s``, ``graph_memory_gib``, and backends.

    Several captures are summed, because an engine captures its drafter apart. Lines of vLLM 0.26
    are known.
    """
    facts: dict[str, str] = {}
    captures = _CAPTURED.findall(text)
    if captures:
        facts["capture_s"] = str(sum(int(seconds) for seconds, _ in captures))
        facts["graph_memory_gib"] = f"{sum(float(gib) for _, gib in captures):.2f}"
    for what, names in _by_kind(text).items():
        facts[what] = ", ".join(names)
    return facts


def _by_kind(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, kind in _lines(text):
        names = found.setdefault(kind, [])
        if name not in names and len(names) < MAX_BACKENDS:
            names.append(name)
    return found


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for name, kind in _BACKEND.findall(text):
        yield name, f"log: {kind.strip() or 'backend'}"
