"""A model made ready to decode: KV slots, row state for every k, runners for every scope."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from cgbench.compile.layers import compile_forwards
from cgbench.engine.acceptance import rule_of, shared_rule
from cgbench.engine.attention import DECODE_BACKENDS
from cgbench.engine.graphs import GraphSet, capture_plan
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.kv import KvCache
from cgbench.engine.nvtx import NvtxEagerRunner, NvtxGraphRunner, named_range
from cgbench.engine.prefill import prefill_slots
from cgbench.engine.runner import CellKey, EagerRunner, GraphRunner, Runner
from cgbench.engine.state import DecodeState
from cgbench.errors import BadInputError, OutOfMemoryError, UnsupportedModelError
from cgbench.floor.device_limits import device_limits
from cgbench.floor.least_time import Floor
from cgbench.floor.telemetry import NoTelemetry, Watch
from cgbench.floor.work import rank_work
from cgbench.models.loader import LoadedModel
from cgbench.planning import CapturePlan
from cgbench.request.choices import Role
from cgbench.request.options import RunOptions
from cgbench.words import Scope
from cgbench.workload.load import Workload


@dataclass
class Bench:
    """Everything that is measured on: build one with ``build_bench``, then ``capture_all``."""

    model: LoadedModel
    options: RunOptions
    workload: Workload
    attention: str
    spec: Speculator
    plans: dict[int, CapturePlan]
    states: dict[int, DecodeState]
    runners: dict[CellKey, Runner] = field(default_factory=dict)
    graph_sets: dict[CellKey, GraphSet] = field(default_factory=dict)
    compile_s: float | None = None
    """What compiling took; None where nothing was."""
    audit_s: float = 0.0
    """What the short audits took so far."""
    watch: Watch = field(default_factory=lambda: Watch(NoTelemetry()))

    @property
    def device(self) -> torch.device:
        return self.spec.target.device

    def marked(self, name: str) -> AbstractContextManager[None]:
        """A range for profilers around what is not timed; nothing without ``--nvtx``."""
        return named_range(name) if self.options.nvtx else nullcontext()

    @cached_property
    def floor(self) -> Floor:
        """Measures the device's limits when it is first asked for."""
        dtype = self.spec.target.dtype
        limits = device_limits(self.device, dtype)
        return Floor(rank_work(self.model), limits, dtype.itemsize)

    @contextmanager
    def auditing(self) -> Iterator[None]:
        """Counts what is done meanwhile as audit."""
        start = time.perf_counter()
        yield
        self.audit_s += time.perf_counter() - start

    def release(self) -> None:
        """Free every graph: before the process ends, and before any process group does."""
        for graph_set in self.graph_sets.values():
            graph_set.release()
        self.graph_sets.clear()


def room_for(options: RunOptions, workload: Workload, max_positions: int) -> int:
    """KV rows a slot needs, in tokens: the longest context, what is decoded past it, and 2k rows
    that drafts past the last emitted token may write.

    Raises ``BadInputError`` where the model's positions do not reach that far.
    """
    room = max(workload.longest, options.context_len) + options.to_decode
    if room > max_positions:
        raise BadInputError(
            f"{_longest_words(options, workload)}: with {options.to_decode} tokens to decode it is "
            f"over the model's {max_positions} positions; shorten it, or lower "
            f"{' or '.join(options.reach_flags)}"
        )
    return room


def _longest_words(options: RunOptions, workload: Workload) -> str:
    """The longest prefill as an error line names it: by its flag, and which prompt it is."""
    if options.context_len >= workload.longest:
        return f"--context-len {options.context_len}"
    number = workload.longest_number
    return f"--prompts {workload.source}, prompt {number} of {workload.longest} tokens"


def build_bench(
    model: LoadedModel, options: RunOptions, workload: Workload, attention: str
) -> Bench:
    """Allocate KV and row state; ``attention`` names a backend that the device can run.

    Raises ``BadInputError`` for lengths that do not fit, ``PlanError`` for sizes that do not.
    """
    if max(workload.longest, options.context_len) > options.max_num_batched_tokens:
        raise BadInputError(
            f"--max-num-batched-tokens {options.max_num_batched_tokens}: too few for "
            f"{_longest_words(options, workload)}"
        )
    plans = options.plans()
    target = model.target
    room = room_for(options, workload, target.max_positions)
    cache = KvCache(
        model.kv_shapes,
        max_batch_size=options.max_batch_size,
        room=room,
        dtype=target.dtype,
        device=target.device,
        state_shapes=model.state_shapes,
        query_len=options.max_spec_tokens + 1,
    )
    accept = shared_rule(rule_of(options.acceptance), target)
    spec = Speculator(target, model.head, cache, DECODE_BACKENDS[attention], accept)
    states = {k: _make_state(model, spec, options, k) for k in plans}
    bench = Bench(model, options, workload, attention, spec, plans, states)
    eager_runner = NvtxEagerRunner if options.nvtx else EagerRunner
    if Scope.EAGER in options.scopes:
        for k, state in states.items():
            bench.runners[k, Scope.EAGER] = eager_runner(spec, state)
    return bench


@torch.inference_mode()
def compile_all(bench: Bench) -> float:
    """Compile the decode forwards, by a step of one request and one of the largest batch at every
    k; returns the seconds that took.

    Raises ``UnsupportedModelError`` where torch cannot compile the model's layers.
    """
    start = time.perf_counter()
    compile_forwards(bench.spec.target, bench.spec.head)
    try:
        with warnings.catch_warnings():
            # Inductor advises on TF32, which would change what float32 means here.
            warnings.simplefilter("ignore", UserWarning)
            for state in bench.states.values():
                state.clear()
                for rows in (state.rows(1), state.full):
                    iteration(bench.spec, rows)
    except TorchDynamoException as error:
        first_line = str(error).partition("\n")[0]
        raise UnsupportedModelError(
            f"--compile default: {bench.model.label} cannot be compiled ({first_line}); "
            "use --compile off"
        ) from error
    return time.perf_counter() - start


def _make_state(
    model: LoadedModel, spec: Speculator, options: RunOptions, spec_tokens: int
) -> DecodeState:
    return DecodeState(
        spec_tokens=spec_tokens,
        max_batch_size=options.max_batch_size,
        scratch_slot=spec.cache.scratch_slot,
        hidden_size=model.target.hidden_size,
        dtype=model.target.dtype,
        device=model.target.device,
        eos_token_ids=model.eos_token_ids,
        draft_vocab_size=model.target.vocab_size if spec.accept.samples_drafts else 0,
    )


@torch.inference_mode()
def dummy_run(bench: Bench) -> dict[str, Any]:
    """The deployment's largest step, before any capture, so that workspaces and the memory peak
    are real. ``mixed``: a prefill of max_num_batched_tokens; both roles: a decode step of
    max_batch_size requests at the largest k. Returns what the record keeps of it.

    Raises ``OutOfMemoryError`` where that step does not fit: no deployment of this size would.
    """
    options = bench.options
    torch.cuda.reset_peak_memory_stats(bench.device)
    start = time.perf_counter()
    try:
        prefill_tokens = _dummy_prefill(bench) if options.role == Role.MIXED else 0
        decode_tokens = _dummy_decode(bench)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory in the dummy run of the largest step (--role {options.role}): "
            "lower --max-num-batched-tokens, --max-num-seqs or --context-len"
        ) from error
    torch.cuda.synchronize(bench.device)
    return {
        "role": options.role,
        "prefill_tokens": prefill_tokens,
        "decode_tokens": decode_tokens,
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(bench.device),
    }


def _dummy_prefill(bench: Bench) -> int:
    cache, device = bench.spec.cache, bench.device
    length = min(cache.room, bench.options.max_num_batched_tokens)
    batch = -(-bench.options.max_num_batched_tokens // length)
    tokens = torch.zeros(batch, length, dtype=torch.long, device=device)
    slots = torch.full((batch,), cache.scratch_slot, dtype=torch.long, device=device)
    uniforms = torch.zeros(batch, device=device)
    prefill_slots(bench.spec, tokens, torch.full_like(slots, length), slots, uniforms)
    return batch * length


def _dummy_decode(bench: Bench) -> int:
    state = bench.states[bench.options.max_spec_tokens]
    state.clear()
    iteration(bench.spec, state.full)
    return state.full.out.numel()


def num_graph_buckets(bench: Bench) -> int:
    """Buckets that ``capture_all`` will capture, over all k and graph scopes."""
    scopes = [scope for scope in bench.options.scopes if scope is not Scope.EAGER]
    return len(scopes) * sum(len(plan.buckets) for plan in bench.plans.values())


def capture_all(bench: Bench, on_bucket: Callable[[], None]) -> None:
    """Capture every plan for every graph scope asked for; each (k, scope) has its own pool, for
    each is a deployment of its own.

    Raises ``CaptureError`` or ``OutOfMemoryError``.
    """
    runner = NvtxGraphRunner if bench.options.nvtx else GraphRunner
    for k, plan in bench.plans.items():
        for scope in bench.options.scopes:
            if scope is Scope.EAGER:
                continue
            with bench.marked(f"capture {scope}, k {k}"):
                graphs = capture_plan(
                    bench.spec, bench.states[k], plan, scope, on_bucket=lambda _: on_bucket()
                )
            bench.graph_sets[k, scope] = graphs
            bench.runners[k, scope] = runner(bench.spec, bench.states[k], plan, graphs)
