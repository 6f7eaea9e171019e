"""Plan which processes of several engines are in memory together.

A wave is the processes that are in memory together. Their cells take blocks in turn. Waves follow
each other.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from cgbench.engines.engine_launch import KINDS
from cgbench.engines.engine_runs import EngineRun
from cgbench.rundir.schema import OWN_ENGINE

MEMORY_SHARE = 0.92
"""The share of the device that one wave may fill by its estimate."""

WORKSPACE_BYTES = {"cuda": 5 << 30, "cpu": 1 << 29}
"""What a process takes besides weights and KV: the context, workspaces, graphs, activations."""

KV_SLACK = 1.3
"""An engine's pages and its own layout of recurrent state take more than the tokens alone."""

LEAST_KV_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


@dataclass(frozen=True, slots=True)
class Member:
    """A ``Member`` is one process of a wave: an engine and the k that it serves."""

    run: EngineRun
    spec_tokens: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the engine with its k, as lines name it."""
        return f"{self.run.name} k={','.join(map(str, self.spec_tokens))}"

    @property
    def log_name(self) -> str:
        """Return the name of the log's file."""
        return f"{self.run.name}-k{'-'.join(map(str, self.spec_tokens))}.log"

    @property
    def kv_bytes(self) -> int:
        """Return the bytes of KV and recurrent state for the largest batch."""
        request, model = self.run.request, self.run.model
        tokens = request.workload.context_len + request.room
        slot = tokens * model.kv_bytes_per_token + model.state_bytes_per_slot
        return max(LEAST_KV_BYTES[model.device], int(KV_SLACK * (request.max_num_seqs + 1) * slot))

    @property
    def needed_bytes(self) -> int:
        """Return an estimate of the device memory of the process."""
        model = self.run.model
        given = self.run.settings.arguments.get("kv_cache_memory_bytes")
        kv = given if isinstance(given, int) else self.kv_bytes
        head = model.head_bytes if max(self.spec_tokens) else 0
        return model.weight_bytes + head + kv + WORKSPACE_BYTES[model.device]


def members(run: EngineRun) -> Iterator[Member]:
    """Yield the processes of an engine. k that it cannot serve are failures of the run."""
    kind, served = KINDS[run.name], run.model.served
    lacks = "decodes without drafts here" if not kind.drafts else served.no_drafts
    if run.name == OWN_ENGINE:
        lacks = ""
    possible = tuple(k for k in run.request.spec_tokens if not (k and lacks))
    run.num_k = len(possible)
    for k in run.request.spec_tokens:
        if k not in possible:
            run.add_omission(f"{run.name} k={k}: not measured: {lacks}")
    if kind.many_k and possible:
        yield Member(run, possible)
    else:
        yield from (Member(run, (k,)) for k in possible)


def waves(every: Sequence[Member], capacity: int, *, one_at_a_time: bool) -> list[list[Member]]:
    """Return ``every`` process in waves that fit ``capacity`` bytes by their estimates, in order.

    A process that does not fit has a wave of its own.
    """
    found: list[list[Member]] = []
    filled = 0
    for member in every:
        needed = member.needed_bytes
        if found and not one_at_a_time and filled + needed <= capacity:
            found[-1].append(member)
            filled += needed
        else:
            found.append([member])
            filled = needed
    return found


def capacity_bytes(device: str) -> int:
    """Return the bytes that a wave may fill."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return int(MEMORY_SHARE * free)
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def turns_of(every: Sequence[Sequence[Member]]) -> str:
    """Return the line on which processes took blocks in turn."""
    return ", then ".join(
        " and ".join(member.name for member in wave) + (" in turn" if len(wave) > 1 else "")
        for wave in every
    )
