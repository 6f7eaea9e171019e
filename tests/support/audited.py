"""A tiny model made ready for an audit."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cgbench.checks import drafts, equality, hidden, hygiene
from cgbench.checks.catalogue import CHECKS
from cgbench.checks.findings import Finding
from cgbench.checks.subject import Subject, make_subject
from cgbench.engine.addresses import captured_addresses
from cgbench.engine.deployment import Deployment
from cgbench.engine.graphs import GraphSet
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.runner import CellKey, GraphRunner
from cgbench.engine.state import DecodeState
from cgbench.measure.session import Session
from cgbench.models.loader import LoadedModel
from cgbench.parallel.ranks import ALONE, Ranks
from cgbench.planning import CaptureUnit
from cgbench.request.acceptance_setting import AcceptanceSetting
from cgbench.request.choices import KvDtype, QuantMode, Role
from cgbench.request.options import RunOptions
from cgbench.words import Scope
from cgbench.workload.load import Workload
from tests.support.session import deployment_of, session_of
from tests.support.tiny import load_tiny, random_prompts

MAX_BATCH = 5
BUCKETS = (2, 5)
MAX_NEW_TOKENS = 6

loaded = cache(load_tiny)
"""One model for all faults that are planted in the code alone."""

FEW_SIZES = (1, 3)
"""One padded size of either bucket."""


def make_deployment(folder: Path, **changes: Any) -> Deployment:
    """The deployment of ``make_session``, whose floor an audit never asks for. ``_asked`` says what
    can be changed."""
    return deployment_of(*_asked(folder, **changes))


def make_session(folder: Path, **changes: Any) -> Session:
    """Buckets of 2 and 5 requests, so that most batch sizes are padded."""
    return session_of(*_asked(folder, **changes))


def _asked(
    folder: Path,
    *,
    seed: int = 0,
    spec_tokens: tuple[int, ...] = (0, 3),
    dtype: torch.dtype = torch.float32,
    acceptance: str = "greedy",
    device: str = "cpu",
    attention: str = "sdpa",
    scopes: tuple[Scope, ...] = (Scope.EAGER,),
    ranks: Ranks = ALONE,
    kv_dtype: KvDtype = KvDtype.AUTO,
    quant: QuantMode = QuantMode.AUTO,
    head: Path | None = None,
    model: LoadedModel | None = None,
) -> tuple[LoadedModel, RunOptions, Workload, str]:
    options = RunOptions(
        spec_tokens=spec_tokens,
        batch_sizes=(MAX_BATCH,),
        scopes=scopes,
        max_batch_size=MAX_BATCH,
        policy="explicit",
        capture_sizes=BUCKETS,
        capture_unit=CaptureUnit.REQUESTS,
        role=Role.DECODE,
        max_num_batched_tokens=2048,
        max_new_tokens=MAX_NEW_TOKENS,
        context_len=8,
        iterations=1,
        acceptance=AcceptanceSetting.parse(acceptance, spec_tokens),
        ignore_eos=False,
        seed=seed,
    )
    how = {"ranks": ranks, "kv_dtype": kv_dtype, "quant": quant, "head": head}
    if model is None:
        model = load_tiny(folder, device=device, dtype=dtype, **how)
    return model, options, Workload("random", prompts_of(seed)), attention


class PretendGraphs(GraphSet):
    """Graphs where there are none: a replay runs the iteration eagerly, on the buffers that were
    there when it was captured."""

    def __init__(self, spec: Speculator, state: DecodeState) -> None:
        super().__init__(Scope.ITERATION, state.spec_tokens, captured_addresses(spec, state))
        self.spec = spec
        self.captured = {bucket: state.rows(bucket) for bucket in BUCKETS}

    def replay(self, batch_size: int) -> None:
        iteration(self.spec, self.captured[batch_size])


def add_graphs(deployment: Deployment) -> Deployment:
    """The deployment with scope ``iteration``, pretended, for every k."""
    graphs: dict[CellKey, GraphSet] = {
        (k, Scope.ITERATION): PretendGraphs(deployment.spec, state)
        for k, state in deployment.states.items()
    }
    runners = {
        key: GraphRunner(deployment.spec, deployment.states[key[0]], deployment.plans[key[0]], each)
        for key, each in graphs.items()
    }
    return replace(deployment, runners={**deployment.runners, **runners}, graph_sets=graphs)


def prompts_of(seed: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(prompt) for prompt in random_prompts(MAX_BATCH, seed=seed))


def subject_of(deployment: Deployment, seed: int = 0) -> Subject:
    """The deployment as an audit by ``seed`` sees it."""
    return make_subject(deployment, prompts_of(seed), MAX_NEW_TOKENS, seed)


def run_all(subject: Subject) -> list[Finding]:
    return [check.run(subject) for check in CHECKS]


def run_checks(subject: Subject) -> list[Finding]:
    """Every check but hygiene, which asks real graphs, or its own tests' stand-ins."""
    return [check.run(subject) for check in CHECKS if check.name != hygiene.NAME]


def run_reference_checks(subject: Subject) -> list[Finding]:
    """Those that hold the engine to the reference, which knows each family's form. The others hold
    it to itself."""
    return [check.run(subject) for check in CHECKS if check.name in REFERENCE_CHECKS]


REFERENCE_CHECKS = (equality.NAME, hidden.NAME, drafts.NAME)


def make_tiny_subject(
    folder: Path,
    *,
    seed: int = 0,
    spec_tokens: tuple[int, ...] = (0, 3),
    dtype: torch.dtype = torch.float32,
    with_graphs: bool = False,
    ranks: Ranks = ALONE,
    kv_dtype: KvDtype = KvDtype.AUTO,
    quant: QuantMode = QuantMode.AUTO,
    head: Path | None = None,
    batch_sizes: tuple[int, ...] = (),
    model: LoadedModel | None = None,
) -> Subject:
    """A subject that is tried with ``spec_tokens`` alone: a deployment has k = 0 always, and an
    audit of it takes as long again."""
    how = {"spec_tokens": spec_tokens, "dtype": dtype, "ranks": ranks, "kv_dtype": kv_dtype}
    deployment = make_deployment(folder, seed=seed, head=head, quant=quant, model=model, **how)
    subject = subject_of(add_graphs(deployment) if with_graphs else deployment, seed)
    states = {k: subject.states[k] for k in spec_tokens}
    return replace(subject, states=states, only_batch_sizes=batch_sizes)
