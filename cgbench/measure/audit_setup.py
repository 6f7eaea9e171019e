"""From a bench to what an audit looks at, and to the record of one."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from cgbench.checks.finding_facts import FindingFacts
from cgbench.checks.findings import Verdict
from cgbench.checks.subject import Subject
from cgbench.engine.acceptance import Greedy, shared_rule
from cgbench.engine.runner import CellKey, EagerRunner, Runner
from cgbench.measure.bench import Bench
from cgbench.rundir.record import RunRecord
from cgbench.words import Scope

MAX_PROMPTS = 16
# Longer contexts are the limits' matter; here they would only cost prefills.
MAX_PROMPT_TOKENS = 256


def make_subject(bench: Bench, seed: int) -> Subject:
    """``bench`` as the audit sees it. ``seed`` chooses among prompts, and cuts them ragged.

    Runners and graphs of another acceptance rule are left out: their answer is not greedy's.
    """
    is_greedy = isinstance(bench.spec.accept, Greedy)
    greedy = shared_rule(Greedy(), bench.spec.target)
    spec = bench.spec if is_greedy else replace(bench.spec, accept=greedy)
    eager: dict[CellKey, Runner] = {
        (k, Scope.EAGER): EagerRunner(spec, state) for k, state in bench.states.items()
    }
    return Subject(
        spec=spec,
        states=bench.states,
        runners=eager | (bench.runners if is_greedy else {}),
        graph_sets=dict(bench.graph_sets) if is_greedy else {},
        plans=bench.plans,
        prompts=choose_prompts(bench.workload.prompts, seed),
        max_new_tokens=bench.options.max_new_tokens,
        seed=seed,
        is_exact=spec.target.dtype == torch.float32,
    )


def choose_prompts(prompts: Sequence[tuple[int, ...]], seed: int) -> tuple[tuple[int, ...], ...]:
    """Up to 16 of ``prompts``, distinct, their first 256 tokens; cut to seeded lengths where all
    are of one length."""
    draw = random.Random(seed)
    distinct = list(dict.fromkeys(prompt[:MAX_PROMPT_TOKENS] for prompt in prompts))
    chosen = draw.sample(distinct, min(MAX_PROMPTS, len(distinct)))
    if len({len(prompt) for prompt in chosen}) == 1:
        chosen = [p[: draw.randint((len(p) + 1) // 2, len(p))] for p in chosen]
    return tuple(dict.fromkeys(chosen))


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
    verdict: Verdict
    seconds: float
    findings: tuple[FindingFacts, ...]

    @property
    def title(self) -> str:
        """What was audited, as every table names it."""
        model = self.record.model
        return f"{model['label']}, head {model['head']}, routing {model['routing']}"

    def to_json(self) -> str:
        """All of it as one JSON object."""
        found = {"verdict": self.verdict, "seconds": self.seconds, "findings": self.findings}
        return json.dumps({**audited(self.record), **found}, indent=2)


def audited(record: RunRecord) -> Mapping[str, object]:
    """What a record says of an audit: everything but its findings."""
    workload = {name: record.workload[name] for name in ("source", "num_prompts", "sha256")}
    return {**{name: getattr(record, name) for name in RECORD}, "workload": workload}
