"""Turn what an engine reported into what records have."""

from cgbench.engines.drivers.messages import Profiled, Started
from cgbench.engines.engine_cells import EngineCell
from cgbench.planning.captured import CapturedPhase
from cgbench.rundir.record_parts import PhaseFacts, ProfileFacts
from cgbench.words import Phase
from cgbench.workload.load import sha256_of

HASHED_TOKENS = 16
"""The tokens of each request that ``tokens_sha256`` covers."""


def captured_sizes(started: Started, k: int) -> list[int]:
    """Return the batch sizes with a graph of the target, as the engine reports them."""
    phases = (Phase.ITERATION, Phase.VERIFY)
    found = {each["phase"]: each["requests"] for each in started.graphs if each["spec_tokens"] == k}
    return sorted(set(next((found[phase] for phase in phases if phase in found), [])))


def phase_facts(each: CapturedPhase) -> PhaseFacts:
    """Return a phase as the record has it."""
    return {
        "spec_tokens": each.spec_tokens,
        "phase": each.phase.value,
        "planned": [*each.planned],
        "captured": [*each.captured],
        "piece_tokens": [*each.piece_tokens],
        "note": each.note,
    }


def profile_facts(cell: EngineCell, profiled: Profiled) -> ProfileFacts:
    """Return a cell's profile as the record has it, in milliseconds."""
    return {
        "spec_tokens": cell.spec_tokens,
        "batch_size": cell.batch_size,
        "steps": profiled.steps,
        "wall_ms": profiled.wall_s * 1e3,
        "gpu_busy_ms": milliseconds(profiled.busy_s),
        "kernel_ms": milliseconds(profiled.kernel_s),
        "kernels": profiled.kernels,
        "copies": profiled.copies,
        "graph_launches": profiled.graph_launches,
        "kernel_launches": profiled.kernel_launches,
        "top": [[name, seconds * 1e3, count] for name, seconds, count in profiled.top],
    }


def milliseconds(seconds: float | None) -> float | None:
    """Return seconds as milliseconds, and None as None."""
    return None if seconds is None else seconds * 1e3


def tokens_hash(tokens: list[list[int]]) -> str | None:
    """Return the hash of the first tokens of each request, or None if some have fewer."""
    first = [each[:HASHED_TOKENS] for each in tokens]
    is_whole = bool(first) and all(len(each) == HASHED_TOKENS for each in first)
    return sha256_of(first) if is_whole else None
