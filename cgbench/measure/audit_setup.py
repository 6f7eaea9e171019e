"""The record of an audit: a run's, without what only a run measures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cgbench.checks.finding_facts import FindingFacts
from cgbench.checks.findings import Answer
from cgbench.rundir.record import RunRecord

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


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit was of, and what it found. ``record`` is that of a run which measures
    nothing."""

    record: RunRecord
    verdict: Answer
    seconds: float
    findings: tuple[FindingFacts, ...]

    @property
    def title(self) -> str:
        """What was audited, as every table names it."""
        model = self.record.model
        mixture = self.record.mixture_words
        words = "" if mixture is None else f", {mixture}"
        return f"{model['label']}, head {model['head']}, routing {model['routing']}{words}"

    def to_json(self) -> str:
        """All of it as one JSON object."""
        found = {"verdict": self.verdict, "seconds": self.seconds, "findings": self.findings}
        return json.dumps({**audited(self.record), **found}, indent=2)


def audited(record: RunRecord) -> Mapping[str, object]:
    """What a record says of an audit: everything but its findings."""
    workload = {name: record.workload[name] for name in ("source", "num_prompts", "sha256")}
    return {**{name: getattr(record, name) for name in RECORD}, "workload": workload}
