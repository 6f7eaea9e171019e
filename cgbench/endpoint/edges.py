"""Find the batch sizes at which a plan changes what runs: buckets, the eager cliff, tiers of k."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from cgbench.planning import PlanRequest, plan
from cgbench.planning.draft_schedule import DraftSchedule
from cgbench.planning.phases import PhaseGraphs, PhasePlan, phases_of
from cgbench.planning.plan import Span
from cgbench.planning.tier_plans import deployment_of


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge is a place between two batch sizes that run differently.

    ``batch_size`` is the last one below the edge, ``peak`` the first one above. At the engine's
    largest batch size both are that size. ``changes`` says in words what changes.
    ``is_steep``: a cliff, a tier or the largest batch size, not merely another bucket.
    """

    batch_size: int
    peak: int
    changes: tuple[str, ...]
    is_steep: bool


def edges_of(request: PlanRequest, schedule: DraftSchedule | None) -> tuple[Edge, ...]:
    """Return every edge of a plan, by batch size.

    Raise ``PlanError`` if the engine refuses the request.
    """
    changes: defaultdict[int, list[tuple[str, bool]]] = defaultdict(list)
    most = request.max_batch_size
    for size, words, is_steep in _changes(request, schedule):
        if size < most and (words, is_steep) not in changes[size]:
            changes[size].append((words, is_steep))
    changes[most].append(("the largest batch", True))
    return tuple(
        Edge(
            size,
            min(size + 1, most),
            tuple(words for words, _ in found),
            any(is_steep for _, is_steep in found),
        )
        for size, found in sorted(changes.items())
    )


def _changes(
    request: PlanRequest, schedule: DraftSchedule | None
) -> Iterator[tuple[int, str, bool]]:
    if schedule is None:
        whole = phases_of(request, plan(request))
        yield from _of_phases(whole, range(1, request.max_batch_size + 1))
        return
    for each in deployment_of(request, schedule).lengths:
        yield from _of_phases(each.phases, each.runs)
    for below, above in pairwise(schedule.tiers):
        yield below.last, f"k {_ks(below.lengths)} to {_ks(above.lengths)}", True


def _of_phases(phases: PhasePlan, runs: Iterable[int]) -> Iterator[tuple[int, str, bool]]:
    sizes = {*runs}
    for phase in phases.phases:
        for below, above in pairwise(phase.spans):
            # A tier's graphs count where its draft length runs on both sides.
            if {below.last, above.first} <= sizes:
                is_cliff = above.bucket is None or below.bucket is None
                yield below.last, _words(phase, below, above), is_cliff


def _words(phase: PhaseGraphs, below: Span, above: Span) -> str:
    return f"{phase.phase.value} {_bucket(below)} to {_bucket(above)}"


def _bucket(span: Span) -> str:
    return "eager" if span.bucket is None else str(span.bucket.batch_size)


def _ks(lengths: tuple[int, ...]) -> str:
    return "/".join(map(str, lengths))
