"""Keep the record of an audit, which is a run's record without what only a run measures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """An ``AuditResult`` holds what was audited, and what the checks found. ``record`` is the
    record of a run that measures nothing. ``seconds`` is the time that the audit took.
    """

    record: RunRecord = field(repr=False)
    verdict: Answer
    seconds: float
    findings: tuple[FindingFacts, ...]

    @property
    def title(self) -> str:
        """Return the line that names what was audited: model, head, routing and mixture."""
        model = self.record.model
        mixture = self.record.mixture_words
        words = "" if mixture is None else f", {mixture}"
        return f"{model['label']}, head {model['head']}, routing {model['routing']}{words}"

    def to_json(self) -> str:
        """Return the record, the verdict and the findings as one JSON object."""
        found = {"verdict": self.verdict, "seconds": self.seconds, "findings": self.findings}
        return json.dumps({**audited(self.record), **found}, indent=2)


def audited(record: RunRecord) -> Mapping[str, object]:
    """Return the fields of a run's record that describe an audit, and the workload's source, size
    and hash.
    """
    workload = {name: record.workload[name] for name in ("source", "num_prompts", "sha256")}
    return {**{name: getattr(record, name) for name in RECORD}, "workload": workload}
