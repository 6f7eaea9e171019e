"""What ``run.json`` of an older schema version says in this one: a step a version."""

from collections.abc import Callable
from pathlib import Path

from cgbench.errors import RunDirectoryError
from cgbench.inputs import JsonObject

SCHEMA_VERSION = 3

# How version 1 marked a thin directory.
_THIN_WARNING = "thin: samples.parquet holds one median a block, not every iteration"


def _from_1(raw: JsonObject) -> JsonObject:
    """Version 2 has fields for a thin directory, until then a warning, and for ``--resume``,
    which version 1 did not record."""
    added = {"thin": False, "resumed": []}
    warnings = raw.get("warnings")
    if not isinstance(warnings, list) or _THIN_WARNING not in warnings:
        return raw | added
    kept = [line for line in warnings if line != _THIN_WARNING]
    return raw | added | {"thin": True, "warnings": kept}


def _from_2(raw: JsonObject) -> JsonObject:
    """Version 3 adds columns to ``latency.csv``: engine, quant, kv_dtype, mtp_modules, draft_vocab.
    They are part of a row's key, so a cgbench that does not know them must not read it."""
    return raw


STEPS: dict[int, Callable[[JsonObject], JsonObject]] = {1: _from_1, 2: _from_2}
"""From each version that is still read to the next one."""


def migrated(raw: JsonObject, file: Path) -> JsonObject:
    """``raw``, the content of ``file``, as ``SCHEMA_VERSION`` says it.

    Raises ``RunDirectoryError``, naming ``file`` and its version, where that is none or newer.
    """
    found = raw.get("schema_version")
    version = found if type(found) is int else None
    while version in STEPS:
        raw = STEPS[version](raw) | {"schema_version": version + 1}
        version += 1
    if version == SCHEMA_VERSION:
        return raw
    read = ", ".join(map(str, [*STEPS, SCHEMA_VERSION]))
    cure = "; a newer cgbench may" if version is not None and version > SCHEMA_VERSION else ""
    shown = " ".join(str(found)[:40].split())
    raise RunDirectoryError(f"{file}: schema_version {shown}; this cgbench reads {read}{cure}")
