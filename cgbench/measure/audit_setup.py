"""From a bench to what an audit looks at, and to the record of one."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cgbench.checks.subject import Subject
from cgbench.engine.acceptance import Greedy, shared_rule
from cgbench.engine.runner import CellKey, EagerRunner, Runner
from cgbench.measure.bench import Bench
from cgbench.measure.setup import make_record
from cgbench.request.run_request import AuditRequest
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


def audit_record(request: AuditRequest, bench: Bench, notes: Sequence[str]) -> dict[str, Any]:
    """Everything about an audit but its findings."""
    record = make_record(request, bench, [*notes])
    workload = {name: record.workload[name] for name in ("source", "num_prompts", "sha256")}
    return {**{name: getattr(record, name) for name in RECORD}, "workload": workload}
