"""A deployment is a model made ready to decode, with KV slots, row states and runners."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from cgbench.engine.acceptance import AcceptanceRule, shared_rule
from cgbench.engine.backends import NamedBackend
from cgbench.engine.graphs import GraphSet, capture_plan
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.kv import KvCache
from cgbench.engine.nvtx import NvtxEagerRunner, NvtxGraphRunner, named_range
from cgbench.engine.prefill import prefill_slots
from cgbench.engine.runner import CellKey, EagerRunner, GraphRunner, Runner
from cgbench.engine.state import DecodeState
from cgbench.errors import OutOfMemoryError
from cgbench.kernels.library_rows import forget
from cgbench.models.loader import LoadedModel
from cgbench.planning import CapturePlan
from cgbench.request.choices import Role
from cgbench.request.options import DeploymentOptions
from cgbench.words import Scope


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A deployment is a model and everything that decoding it takes.

    ``deploy`` makes one that runs eager. ``capture`` returns it with its graphs, and nothing
    changes it after that. ``plans`` and ``states`` are by k. ``runners`` and ``graph_sets`` are by
    (k, scope).
    """

    model: LoadedModel
    options: DeploymentOptions
    attention: str
    spec: Speculator
    plans: Mapping[int, CapturePlan]
    states: Mapping[int, DecodeState]
    runners: Mapping[CellKey, Runner]
    graph_sets: Mapping[CellKey, GraphSet]
    compile_s: float | None = None
    """This is the time that compiling took. None if nothing was compiled."""

    @property
    def device(self) -> torch.device:
        """Return the device that the target is on."""
        return self.spec.target.device

    def marked(self, name: str) -> AbstractContextManager[None]:
        """Return a profiler range for work that is not timed. Without ``--nvtx`` it does
        nothing."""
        return named_range(name) if self.options.nvtx else nullcontext()

    def release(self) -> None:
        """Free every graph, and forget which rows its products were padded to.

        Call it before the process ends, and before any process group does.
        """
        for graph_set in self.graph_sets.values():
            graph_set.release()
        forget()


def deploy(
    model: LoadedModel,
    plans: Mapping[int, CapturePlan],
    options: DeploymentOptions,
    *,
    room: int,
    attention: NamedBackend,
    accept: AcceptanceRule,
) -> Deployment:
    """Allocate KV of ``room`` tokens a slot and the row state, and make the eager runners.

    The device must be able to run ``attention``. No graph is captured yet.
    """
    target = model.target
    cache = KvCache(
        model.kv_shapes,
        max_batch_size=options.max_batch_size,
        room=room,
        dtype=target.dtype,
        device=target.device,
        state_shapes=model.state_shapes,
        query_len=max(plans) + 1,
        kv_format=model.kv_format,
    )
    accept = shared_rule(accept, target)
    spec = Speculator(target, model.head, cache, attention.decode, accept)
    states = {k: make_state(spec, k, options.max_batch_size, model.eos_token_ids) for k in plans}
    return Deployment(
        model=model,
        options=options,
        attention=attention.name,
        spec=spec,
        plans=MappingProxyType({**plans}),
        states=MappingProxyType(states),
        runners=MappingProxyType(_eager_runners(spec, states, options)),
        graph_sets=MappingProxyType({}),
    )


def make_state(
    spec: Speculator, spec_tokens: int, max_batch_size: int, eos_token_ids: Sequence[int] = ()
) -> DecodeState:
    """Allocate the row state of ``spec``'s decoding with ``spec_tokens`` drafts."""
    return DecodeState(
        spec_tokens=spec_tokens,
        max_batch_size=max_batch_size,
        scratch_slot=spec.cache.scratch_slot,
        hidden_size=spec.chain_size,
        fed_size=spec.fed_size,
        dtype=spec.target.dtype,
        device=spec.target.device,
        eos_token_ids=tuple(eos_token_ids),
        draft_vocab_size=spec.target.vocab_size if spec.accept.samples_drafts else 0,
        num_modules=spec.num_modules,
    )


def _eager_runners(
    spec: Speculator, states: Mapping[int, DecodeState], options: DeploymentOptions
) -> dict[CellKey, Runner]:
    if Scope.EAGER not in options.scopes:
        return {}
    runner = NvtxEagerRunner if options.nvtx else EagerRunner
    return {(k, Scope.EAGER): runner(spec, state) for k, state in states.items()}


@dataclass(frozen=True, slots=True)
class DummyRun:
    """This record holds what the deployment's largest step took: time, memory and its size in
    tokens."""

    role: Role
    prefill_tokens: int
    decode_tokens: int
    seconds: float
    peak_memory_bytes: int


@torch.inference_mode()
def dummy_run(deployment: Deployment) -> DummyRun:
    """Run the deployment's largest step before any capture.

    Workspaces and the memory peak are real after it. Both roles run a decode step of max_batch_size
    requests at the largest k. Role ``mixed`` runs a prefill of at least max_num_batched_tokens
    before it.

    Raise ``OutOfMemoryError`` if that step does not fit, because no deployment of this size would.
    """
    role = deployment.options.role
    torch.cuda.reset_peak_memory_stats(deployment.device)
    start = time.perf_counter()
    try:
        prefill_tokens = _dummy_prefill(deployment) if role == Role.MIXED else 0
        decode_tokens = _dummy_decode(deployment)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory in the dummy run of the largest step (--role {role}): "
            "lower --max-num-batched-tokens, --max-num-seqs or --context-len"
        ) from error
    torch.cuda.synchronize(deployment.device)
    return DummyRun(
        role,
        prefill_tokens,
        decode_tokens,
        seconds=time.perf_counter() - start,
        peak_memory_bytes=torch.cuda.max_memory_allocated(deployment.device),
    )


def _dummy_prefill(deployment: Deployment) -> int:
    cache, device = deployment.spec.cache, deployment.device
    budget = deployment.options.max_num_batched_tokens
    length = min(cache.room, budget)
    batch = -(-budget // length)
    tokens = torch.zeros(batch, length, dtype=torch.long, device=device)
    slots = torch.full((batch,), cache.scratch_slot, dtype=torch.long, device=device)
    uniforms = torch.zeros(batch, device=device)
    prefill_slots(deployment.spec, tokens, torch.full_like(slots, length), slots, uniforms)
    return batch * length


def _dummy_decode(deployment: Deployment) -> int:
    state = deployment.states[max(deployment.states)]
    state.clear()
    iteration(deployment.spec, state.full)
    return state.full.out.numel()


def num_graph_buckets(deployment: Deployment) -> int:
    """Return how many buckets ``capture`` will capture, over all k and graph scopes."""
    return sum(len(deployment.plans[k].buckets) for k, _ in _graph_keys(deployment))


def _graph_keys(deployment: Deployment) -> list[CellKey]:
    scopes = [scope for scope in deployment.options.scopes if scope is not Scope.EAGER]
    return [(k, scope) for k in deployment.plans for scope in scopes]


def capture(deployment: Deployment, on_bucket: Callable[[], None]) -> Deployment:
    """Capture every plan for every graph scope asked for, and return the deployment with its
    graphs.

    Each (k, scope) has its own pool, because each is a deployment of its own. Call ``release`` on
    the one that is returned. Raise ``CaptureError`` or ``OutOfMemoryError`` on failure, which
    leaves no graph behind.
    """
    runner = NvtxGraphRunner if deployment.options.nvtx else GraphRunner
    graph_sets: dict[CellKey, GraphSet] = {}
    runners = {**deployment.runners}
    with ExitStack() as undo:
        for k, scope in _graph_keys(deployment):
            state, plan = deployment.states[k], deployment.plans[k]
            with deployment.marked(f"capture {scope}, k {k}"):
                graphs = capture_plan(
                    deployment.spec, state, plan, scope, on_bucket=lambda _: on_bucket()
                )
            undo.callback(graphs.release)
            graph_sets[k, scope] = graphs
            runners[k, scope] = runner(deployment.spec, state, plan, graphs)
        undo.pop_all()
    return replace(
        deployment, runners=MappingProxyType(runners), graph_sets=MappingProxyType(graph_sets)
    )
