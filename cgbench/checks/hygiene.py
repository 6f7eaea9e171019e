"""Graphs are the planned buckets at the addresses captured, and replays allocate nothing.

These faults leave the tokens right at first, and the latency good for ever. Examples are a buffer
reassigned after the capture, a bucket too large, and memory that grows with each replay.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice, pairwise

import torch

from cgbench.checks.computed import bucket_fault
from cgbench.checks.findings import (
    Difference,
    Finding,
    Where,
    first_of,
    holds,
    not_run,
    wrong,
)
from cgbench.checks.subject import Subject
from cgbench.engine.addresses import captured_addresses, moved, state_addresses
from cgbench.engine.graph_cost import GraphCost
from cgbench.engine.graphs import GraphSet, num_nodes, phases_of
from cgbench.engine.runner import Runner
from cgbench.floor.telemetry import Telemetry, open_telemetry
from cgbench.parallel.ranks import gathered
from cgbench.planning import CapturePlan
from cgbench.words import Phase, Scope

NAME = "hygiene"
TITLE = "graphs are the plan's, at the addresses captured. Replays are quiet and memory stays"

# Two stretches of half as many, and more if memory grew in both. What a replay leaves behind grows
# in every stretch. What another process takes meanwhile does not.
REPLAYS = 200
MOST_STRETCHES = 6


@dataclass(frozen=True, slots=True)
class _Graphs:
    """These are the graphs of one (k, scope), and what they must be."""

    subject: Subject
    graphs: GraphSet
    runner: Runner
    plan: CapturePlan

    def where(self, bucket: int | None = None, batch_size: int | None = None) -> Where:
        return Where(self.graphs.scope, self.graphs.spec_tokens, bucket, batch_size)


def run(subject: Subject) -> Finding:
    """Check the graphs against the plan, and what a replay does, and return the finding. It is not
    run without CUDA graphs.
    """
    if not subject.graph_sets:
        on_cuda = subject.spec.target.device.type == "cuda"
        reason = "no graph was captured: see --scopes" if on_cuda else "graphs need a CUDA device"
        return not_run(NAME, reason)
    sets = [
        _Graphs(subject, graphs, subject.runners[key], subject.plans[key[0]])
        for key, graphs in subject.graph_sets.items()
    ]
    difference = first_of((found for each in sets for found in _differences(each)), subject.ranks)
    figures = _figures(subject)
    return wrong(NAME, difference, **figures) if difference else holds(NAME, **figures)


def _differences(this: _Graphs) -> Iterator[Difference]:
    """Yield what is wrong in what can be read off, then in what is replayed."""
    yield from _ledger(this)
    yield from _addresses(this)
    yield from _nodes(this)
    this.runner.state.clear()
    yield from _buckets(this)
    yield from _noise(this)
    yield from _growth(this)


def _ledger(this: _Graphs) -> Iterator[Difference]:
    fault = ledger_fault(this.graphs.batch_sizes, this.graphs.costs, this.plan, this.graphs.scope)
    if fault is not None:
        yield Difference(fault, this.where())


def ledger_fault(
    captured: Sequence[int], costs: Sequence[GraphCost], plan: CapturePlan, scope: Scope
) -> str | None:
    """Return what differs from the plan in the buckets ``captured`` or in their graphs, or None.

    Every bucket must be there once, from large to small. Each graph must have bucket * (k + 1)
    tokens.
    """
    planned = tuple(sorted(plan.batch_sizes, reverse=True))
    if tuple(captured) != planned:
        return f"captured {tuple(captured)}, where the plan is {planned}"
    query_len, phases = plan.spec_tokens + 1, phases_of(scope, plan.spec_tokens)
    expected = [(size, phase, size * query_len) for size in planned for phase in phases]
    found = [(cost.bucket, cost.phase, cost.num_tokens) for cost in costs]
    if len(found) != len(expected):
        return f"{len(found)} graphs in the ledger, where the plan has {len(expected)}"
    pairs = zip(found, expected, strict=True)
    return next(
        (f"{_graph(got)}, where the plan has {_graph(ours)}" for got, ours in pairs if got != ours),
        None,
    )


def _graph(entry: tuple[int, Phase, int]) -> str:
    return f"a {entry[1]} graph of {entry[0]} requests, {entry[2]} tokens"


def _addresses(this: _Graphs) -> Iterator[Difference]:
    """Check that state, KV, weights and the views handed out are where the capture found them."""
    captured, state = this.graphs.addresses, this.runner.state
    for name in moved(captured, captured_addresses(this.subject.spec, state)):
        yield Difference(f"{name} was reassigned after the capture: it moved", this.where())
    of_state = {name: at for name, at in captured.items() if name.startswith("state.")}
    for bucket in this.graphs.batch_sizes:
        for name in moved(of_state, state_addresses(state.rows(bucket))):
            yield Difference(f"{name}: its first rows moved", this.where(bucket))


def _nodes(this: _Graphs) -> Iterator[Difference]:
    for bucket in this.graphs.batch_sizes:
        for captured in this.graphs.captured(bucket):
            now, then = num_nodes(captured.graph), captured.cost.nodes
            if now != then:
                text = f"the {captured.cost.phase} graph has {now} nodes, {then} at its capture"
                yield Difference(text, this.where(bucket))


def _buckets(this: _Graphs) -> Iterator[Difference]:
    """Check that every batch size replays the bucket of the plan."""
    largest = max(this.graphs.batch_sizes)
    for batch_size in this.subject.batch_sizes(this.graphs.spec_tokens):
        if batch_size > largest:
            continue
        bucket = this.subject.bucket_of(this.graphs.spec_tokens, batch_size)
        fault = bucket_fault(this.subject.spec, this.runner, batch_size, bucket)
        if fault is not None:
            yield Difference(fault, this.where(bucket, batch_size))


def _noise(this: _Graphs) -> Iterator[Difference]:
    """Check that a replay asks the allocator for nothing and waits for nothing."""
    for bucket in this.graphs.batch_sizes:
        torch.cuda.synchronize()
        before = _num_allocations()
        try:
            with _no_syncs():
                this.runner.step(bucket)
        except RuntimeError as error:
            first_line = str(error).partition("\n")[0]
            yield Difference(f"a replay synchronises: {first_line}", this.where(bucket))
        if count := _num_allocations() - before:
            yield Difference(f"a replay allocates {count} tensors", this.where(bucket))


@contextmanager
def _no_syncs() -> Iterator[None]:
    with warnings.catch_warnings():
        # Torch warns that it may miss a synchronisation. One that it finds is still one.
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _num_allocations() -> int:
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


def _growth(this: _Graphs) -> Iterator[Difference]:
    """Check that memory stays as it is while all buckets are replayed in turn."""
    with open_telemetry(this.subject.spec.target.device) as telemetry:
        seen = [_memory(telemetry)]
        for stretch in range(MOST_STRETCHES):
            for bucket in islice(cycle(this.graphs.batch_sizes), REPLAYS // 2):
                this.runner.step(bucket)
            seen.append(_memory(telemetry))
            # The growth is that of all ranks, because they replay together.
            growth = max(gathered(steady_growth(seen)))
            if stretch and not growth:
                return
    replays = MOST_STRETCHES * REPLAYS // 2
    text = f"memory grew by {growth} bytes over {replays} replays"
    yield Difference(text, this.where())


def _memory(telemetry: Telemetry) -> tuple[int, int | None]:
    """Return the bytes that torch has reserved, and the bytes in use on the whole device.

    The second is None if other processes are on the device, because it would count their memory
    too.
    """
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    reading = telemetry.read()
    is_shared = reading is not None and len(reading.processes) > 1
    return torch.cuda.memory_reserved(), None if is_shared else total - free


def steady_growth(seen: Sequence[tuple[int, int | None]]) -> int:
    """Return the bytes by which one of the readings grew from first to last, if it grew at every
    step. Return 0 if none did. A reading that is None at times is ignored.
    """
    grown = 0
    for readings in zip(*seen, strict=True):
        known = [each for each in readings if each is not None]
        if len(known) == len(seen) and all(after > before for before, after in pairwise(known)):
            grown = max(grown, known[-1] - known[0])
    return grown


def _figures(subject: Subject) -> dict[str, int | str]:
    """Return how much was looked at, and the nodes of the largest bucket's iteration. These are its
    one graph's, or its three's together.
    """
    graphs = subject.graph_sets.values()
    return {
        "graphs": sum(len(each.costs) for each in graphs),
        "replays": REPLAYS * len(graphs),
        "addresses": sum(len(each.addresses) for each in graphs),
        **{f"nodes_k{each.spec_tokens}_{each.scope}": _num_nodes(each) for each in graphs},
    }


def _num_nodes(graphs: GraphSet) -> int | str:
    counts = [captured.cost.nodes for captured in graphs.captured(max(graphs.batch_sizes))]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else "unknown"
