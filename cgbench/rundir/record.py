"""``run.json``: what a run was, but for its numbers; read only where it is whole and understood.

Written against the standard library alone, as ``schema``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypedDict, cast, get_origin

from cgbench.errors import RunDirectoryError
from cgbench.rundir.migrations import SCHEMA_VERSION, migrated
from cgbench.rundir.record_schema import part_faults
from cgbench.rundir.strict_json import loads

# Flags that change where results go, not what is measured.
UNMEASURED_FLAGS = frozenset({"output", "resume", "thin", "json", "debug"})

# Fields that runs of this schema version may lack: they came after the first ones were kept.
ADDED_FIELDS = frozenset({"telemetry", "floor", "seconds"})


class PlanFacts(TypedDict):
    """One k's capture plan. Batch sizes are in requests; of an older run some may be missing."""

    policy: str
    spec_tokens: int
    max_batch_size: int
    batch_sizes: Sequence[int]
    capture_tokens: Sequence[int]
    indivisible: Sequence[int]
    eager_batch_sizes: int
    mean_padding: float
    warnings: Sequence[str]


@dataclass(kw_only=True)
class RunRecord:
    """``run.json``: everything about a run but its numbers.

    ``arguments`` are JSON values under the flags' names, with ``_`` for ``-`` and ``model`` for
    MODEL. ``model["label"]`` is the name that every table shows. ``complete`` turns true last.
    """

    cgbench_version: str
    created_utc: str
    environment: dict[str, Any]
    arguments: dict[str, Any]
    model: dict[str, Any]
    workload: dict[str, Any]
    plans: list[PlanFacts]
    schema_version: int = SCHEMA_VERSION
    complete: bool = False
    thin: bool = False
    """Whether ``samples.parquet`` holds a row a block, not every iteration."""
    resumed: list[dict[str, Any]] = field(default_factory=list)
    """Each ``--resume``: ``utc``, and the ``kept_batch_sizes`` that were finished by then."""
    capture: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    telemetry: dict[str, Any] = field(default_factory=dict)
    floor: dict[str, Any] = field(default_factory=dict)
    """``limits``: the device's, as measured in this run; ``accounts``: see ``floor.account``."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``run``: from the start to the newest group's end; ``audit``: the short audits' part."""

    @property
    def measured_arguments(self) -> dict[str, Any]:
        """The arguments that decide what is measured, in the order recorded."""
        return {k: v for k, v in self.arguments.items() if k not in UNMEASURED_FLAGS}

    def to_json(self) -> str:
        """The text of ``run.json``."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, file: Path) -> Self:
        """Read ``text``, the content of ``file``; of an older schema version what it says in
        this one.

        Raises ``RunDirectoryError``, naming ``file``, where the text is not JSON, comes from a
        schema version that is not read, or has a field that is unknown or is missing, of another
        type or out of range, at any depth (the field is named).
        """
        raw = migrated(_object(text, file), file)
        held = [each for each in _kinds(cls) if each[0] in raw or each[0] not in ADDED_FIELDS]
        values = {name: _checked(raw, name, kind, file) for name, kind in held}
        if unknown := sorted(raw.keys() - values.keys()):
            raise RunDirectoryError(
                f"{file}: field {unknown[0]} is unknown; a newer cgbench may read it"
            )
        for fault in part_faults(raw):
            raise RunDirectoryError(f"{file}: {fault}")
        return cls(**values)


def _object(text: str, file: Path) -> dict[str, Any]:
    try:
        raw = loads(text)
    except ValueError as error:
        raise RunDirectoryError(f"{file}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RunDirectoryError(f"{file}: not a JSON object")
    return raw


def _kinds(record: type[RunRecord]) -> list[tuple[str, type]]:
    """Field names and the classes JSON reads them as: ``list`` for ``list[str]``."""
    return [(f.name, get_origin(f.type) or cast(type, f.type)) for f in fields(record)]


def _checked(raw: dict[str, Any], name: str, kind: type, file: Path) -> Any:
    if not isinstance(raw.get(name), kind):
        raise RunDirectoryError(f"{file}: field {name} is missing or is not a {kind.__name__}")
    return raw[name]


def resumed_words(entry: Mapping[str, Any]) -> str:
    """One of a record's ``resumed`` in words: when, and what was kept."""
    kept = [
        f"{name.removeprefix('kept_').replace('_', ' ')} {', '.join(map(str, values)) or 'none'}"
        for name, values in entry.items()
        if name.startswith("kept_")
    ]
    return f"{entry.get('utc')}, kept {'; '.join(kept)}"
