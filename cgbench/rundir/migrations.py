"""Bring a ``run.json`` of an older schema version to this one, one version a step."""

from collections.abc import Callable
from pathlib import Path

from cgbench.errors import RunDirectoryError
from cgbench.inputs import JsonObject

SCHEMA_VERSION = 3

# How version 1 marked a thin directory.
_THIN_WARNING = "thin: samples.parquet holds one median a block, not every iteration"


def _from_1(raw: JsonObject) -> JsonObject:
    """Bring version 1 to version 2.

    Version 2 has a field for a thin directory, which was a warning until then. It also has one for
    ``--resume``, which version 1 did not record.
    """
    added = {"thin": False, "resumed": []}
    warnings = raw.get("warnings")
    if not isinstance(warnings, list) or _THIN_WARNING not in warnings:
        return raw | added
    kept = [line for line in warnings if line != _THIN_WARNING]
    return raw | added | {"thin": True, "warnings": kept}


def _from_2(raw: JsonObject) -> JsonObject:
    """Bring version 2 to version 3, which changes nothing in the record.

    Version 3 adds columns to ``latency.csv``: engine, quant, kv_dtype, mtp_modules and draft_vocab.
    They are part of a row's key, so a cgbench without them must not read it.
    """
    return raw


STEPS: dict[int, Callable[[JsonObject], JsonObject]] = {1: _from_1, 2: _from_2}
"""From each older version that is still read, the step to the next one."""


def migrated(raw: JsonObject, file: Path) -> JsonObject:
    """Return ``raw``, the content of ``file``, in the form of ``SCHEMA_VERSION``.

    Raise ``RunDirectoryError``, which names ``file`` and its version, if that is none or newer.
    """
    found = raw.get("schema_version")
    version = found if type(found) is int else None
    while version in STEPS:
        raw = STEPS[version](raw) | {"schema_version": version + 1}
        version += 1
    if version == SCHEMA_VERSION:
        return raw
    read = ", ".join(map(str, [*STEPS, SCHEMA_VERSION]))
    cure = ". A newer cgbench may" if version is not None and version > SCHEMA_VERSION else ""
    shown = " ".join(str(found)[:40].split())
    raise RunDirectoryError(f"{file}: schema_version {shown}. This cgbench reads {read}{cure}")
