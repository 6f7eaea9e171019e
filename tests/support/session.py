"""Sessions of tiny models on the CPU, and of the bigram checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cgbench.engine.backends import resolve_backend
from cgbench.engine.deployment import Deployment
from cgbench.engine.runner import CellKey, Runner
from cgbench.floor.device_limits import DeviceLimits
from cgbench.floor.least_time import floor_of
from cgbench.floor.telemetry import NoTelemetry, Watch
from cgbench.measure.run_clock import Clock
from cgbench.measure.session import Session
from cgbench.measure.setup import make_deployment
from cgbench.models.loader import LoadedModel
from cgbench.parallel.ranks import ALONE, Ranks
from cgbench.request.options import RunOptions
from cgbench.workload.load import Workload
from tests.support.bigram import VOCAB
from tests.support.options import make_options
from tests.support.tiny import load_tiny, random_prompts

BATCH = 2
CONTEXT_LEN = 7
MAX_NEW_TOKENS = 24
KS = (0, 1, 3)
PROMPTS = tuple(map(tuple, random_prompts(5, vocab=VOCAB)))


ITERATIONS = 6

LIMITS = DeviceLimits(read_bytes_per_s=1e10, flops_per_s=1e11)
"""A planted device: no test waits until this one's limits are measured."""


def deployment_of(
    model: LoadedModel, options: RunOptions, workload: Workload, attention: str = "sdpa"
) -> Deployment:
    """A deployment of ``model`` without graphs."""
    backend = resolve_backend(attention, model.target.device)
    return make_deployment(options, model, workload, backend)


def session_of(
    model: LoadedModel, options: RunOptions, workload: Workload, attention: str = "sdpa"
) -> Session:
    """A session over ``model``, without telemetry and without graphs."""
    deployment = deployment_of(model, options, workload, attention)
    watch, floor = Watch(NoTelemetry()), floor_of(model, LIMITS)
    return Session(deployment, options, workload, watch, floor, Clock())


def make_session(
    folder: Path,
    iterations: int = ITERATIONS,
    batch_size: int = BATCH,
    ranks: Ranks = ALONE,
) -> Session:
    options = make_options(
        spec_tokens=KS,
        batch_sizes=(batch_size,),
        max_batch_size=batch_size,
        max_new_tokens=MAX_NEW_TOKENS,
        context_len=CONTEXT_LEN,
        iterations=iterations,
    )
    return session_of(load_tiny(folder, ranks=ranks), options, Workload("a test", PROMPTS))


def with_runners(session: Session, runners: Mapping[CellKey, Runner]) -> Session:
    """The session with these runners alone."""
    return replace(session, deployment=replace(session.deployment, runners=runners))
