"""The record of an audit: a run's, without what only a run measures."""

from collections.abc import Mapping
from typing import Any

from cgbench.measure.setup import Setup, make_record

RECORD = (
    "cgbench_version",
    "created_utc",
    "environment",
    "arguments",
    "model",
    "plans",
    "warnings",
)
"""Fields of a run's record that an audit has too."""


def audit_record(arguments: Mapping[str, Any], setup: Setup) -> dict[str, Any]:
    """Everything about an audit but its findings; ``arguments`` are the flags given."""
    record = make_record(dict(arguments), setup)
    workload = {name: record.workload[name] for name in ("source", "num_prompts", "sha256")}
    return {**{name: getattr(record, name) for name in RECORD}, "workload": workload}
