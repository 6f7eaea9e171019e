"""Find what keeps the groups of two records from standing in one table."""

from collections.abc import Mapping
from typing import Any

from cgbench.request.command_line import flag_name
from cgbench.rundir.record import RunRecord

# A run's groups come from one machine and one build, because their ratios are compared.
ONE_RUN = ("gpu", "cpu", "driver", "torch", "transformers", "cgbench_commit")


def differing(begun: RunRecord, asked: RunRecord) -> list[str]:
    """Return the name of each thing that a resumed run must have like the run it resumes, but does
    not.
    """
    old, new = begun.arguments, asked.arguments
    return [
        *differing_flags(old, new),
        *(name for name in ONE_RUN if begun.environment.get(name) != asked.environment.get(name)),
        *(["model"] if begun.model.get("fingerprint") != asked.model.get("fingerprint") else []),
        *(["--prompts"] if begun.workload.get("sha256") != asked.workload.get("sha256") else []),
    ]


def differing_flags(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the flags that two records' arguments do not have alike."""
    names = dict.fromkeys([*old, *new])
    return [flag_name(name) for name in names if old.get(name) != new.get(name)]
