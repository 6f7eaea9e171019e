"""A tiny model made ready for an audit."""

from pathlib import Path

import torch

from cgbench.checks import hygiene
from cgbench.checks.catalogue import CHECKS
from cgbench.checks.findings import Finding
from cgbench.checks.subject import Subject
from cgbench.engine.addresses import captured_addresses
from cgbench.engine.graphs import GraphSet
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.runner import GraphRunner
from cgbench.engine.state import DecodeState
from cgbench.measure.audit_setup import make_subject
from cgbench.measure.bench import Bench, build_bench
from cgbench.request.options import RunOptions
from cgbench.words import Scope
from cgbench.workload.load import Workload
from tests.support.tiny import load_tiny, random_prompts

MAX_BATCH = 5
BUCKETS = (2, 5)
MAX_NEW_TOKENS = 8


def make_bench(
    folder: Path,
    *,
    seed: int = 0,
    spec_tokens: tuple[int, ...] = (0, 3),
    dtype: torch.dtype = torch.float32,
    acceptance: str = "greedy",
    device: str = "cpu",
    attention: str = "sdpa",
    scopes: tuple[Scope, ...] = (Scope.EAGER,),
) -> Bench:
    """Buckets of 2 and 5 requests, so that most batch sizes are padded."""
    options = RunOptions(
        spec_tokens=spec_tokens,
        batch_sizes=(MAX_BATCH,),
        scopes=scopes,
        max_batch_size=MAX_BATCH,
        policy="explicit",
        capture_sizes=BUCKETS,
        capture_unit="requests",
        role="decode",
        max_num_batched_tokens=2048,
        max_new_tokens=MAX_NEW_TOKENS,
        context_len=8,
        iterations=1,
        acceptance=acceptance,
        ignore_eos=False,
        seed=seed,
    )
    prompts = tuple(tuple(prompt) for prompt in random_prompts(MAX_BATCH, seed=seed))
    model = load_tiny(folder, device=device, dtype=dtype)
    return build_bench(model, options, Workload("random", prompts), attention)


class PretendGraphs(GraphSet):
    """Graphs where there are none: a replay runs the iteration eagerly, on the buffers that were
    there when it was captured."""

    def __init__(self, spec: Speculator, state: DecodeState) -> None:
        super().__init__(Scope.ITERATION, state.spec_tokens, captured_addresses(spec, state))
        self.spec = spec
        self.captured = {bucket: state.rows(bucket) for bucket in BUCKETS}

    def replay(self, batch_size: int) -> None:
        iteration(self.spec, self.captured[batch_size])


def add_graphs(bench: Bench) -> None:
    """Scope ``iteration``, pretended, for every k."""
    for k, state in bench.states.items():
        graphs = PretendGraphs(bench.spec, state)
        key = k, Scope.ITERATION
        bench.graph_sets[key] = graphs
        bench.runners[key] = GraphRunner(bench.spec, state, bench.plans[k], graphs)


def run_checks(subject: Subject) -> list[Finding]:
    """Every check but hygiene, which asks real graphs, or its own tests' stand-ins."""
    return [check.run(subject) for check in CHECKS if check.name != hygiene.NAME]


def make_tiny_subject(
    folder: Path,
    *,
    seed: int = 0,
    spec_tokens: tuple[int, ...] = (0, 3),
    dtype: torch.dtype = torch.float32,
    with_graphs: bool = False,
) -> Subject:
    bench = make_bench(folder, seed=seed, spec_tokens=spec_tokens, dtype=dtype)
    if with_graphs:
        add_graphs(bench)
    return make_subject(bench, seed)
