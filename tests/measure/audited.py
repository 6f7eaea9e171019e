"""A tiny model made ready for an audit on the CPU."""

from pathlib import Path

import torch

from cgbench.measure.audit.subject import Subject, make_subject
from cgbench.measure.bench import Bench, build_bench
from cgbench.measure.options import RunOptions
from cgbench.measure.workload import Workload
from cgbench.report.schema import Scope
from tests.tiny import load_tiny, random_prompts

MAX_BATCH = 5
BUCKETS = (2, 5)
MAX_NEW_TOKENS = 16


def make_bench(
    folder: Path,
    *,
    seed: int = 0,
    spec_tokens: tuple[int, ...] = (0, 3),
    dtype: torch.dtype = torch.float32,
    acceptance: str = "greedy",
) -> Bench:
    """Buckets of 2 and 5 requests, so that most batch sizes are padded."""
    options = RunOptions(
        spec_tokens=spec_tokens,
        batch_sizes=(MAX_BATCH,),
        scopes=(Scope.EAGER,),
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
    return build_bench(load_tiny(folder, dtype=dtype), options, Workload("random", prompts), "sdpa")


def make_tiny_subject(
    folder: Path,
    *,
    seed: int = 0,
    spec_tokens: tuple[int, ...] = (0, 3),
    dtype: torch.dtype = torch.float32,
) -> Subject:
    return make_subject(make_bench(folder, seed=seed, spec_tokens=spec_tokens, dtype=dtype), seed)
