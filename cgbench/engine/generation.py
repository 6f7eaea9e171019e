"""The decode loop takes requests to their end, and re-packs them to smaller buckets as they finish.

It serves eager and graph runners alike. Results are read one iteration behind, so the loop never
waits for the iteration it has just launched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cgbench.engine.readback import Reader, Ticket
from cgbench.engine.runner import Runner
from cgbench.kernels.row_updates import ACTIVE, NUM_ACCEPTED, NUM_EMITTED, OUT


@dataclass
class Generated:
    """This is what a wave of requests produced, a list entry a request.

    ``token_ids[i]`` are request i's tokens, its prefill's first. ``accepted[i]`` are the drafts
    kept by each of its iterations, before any cut at EOS or at the length limit. ``num_rows`` are
    the rows computed by each iteration of the wave, padding included.
    """

    token_ids: list[list[int]]
    accepted: list[list[int]]
    num_rows: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """An iteration in flight is launched but not yet read. ``requests[row]`` is the row's
    request."""

    ticket: Ticket
    requests: Sequence[int]


def generate(runner: Runner, first_tokens: Sequence[int]) -> Generated:
    """Decode the requests that ``begin_decoding`` put in the runner's state, to their end.

    ``first_tokens`` are the tokens that prefill emitted, one a request.
    """
    state = runner.state
    out = Generated([[token] for token in first_tokens], [[] for _ in first_tokens])
    # The one wait before the loop. A request that its first token ends never becomes a row.
    active = state.full.active[: len(first_tokens)].tolist()
    requests = [request for request, is_active in enumerate(active) if is_active]
    if 0 < len(requests) < len(first_tokens):
        state.repack(requests)
    reader = Reader(state.full)
    previous: _InFlight | None = None
    live = set(requests)
    while live:
        runner.step(len(requests))
        out.num_rows.append(runner.num_rows(len(requests)))
        launched = _InFlight(reader.push(state.rows(len(requests))), tuple(requests))
        if previous is not None:
            live -= _absorb(out, previous)
            requests = _repack(runner, requests, live)
        previous = launched
    if previous is not None:
        _absorb(out, previous)
    return out


def _absorb(out: Generated, finished: _InFlight) -> set[int]:
    """Take over one iteration's result, and return the requests that it ended."""
    result: torch.Tensor = finished.ticket.wait()
    ended: set[int] = set()
    for request, row in zip(finished.requests, result.tolist(), strict=True):
        if not row[NUM_EMITTED]:
            continue
        out.token_ids[request] += row[OUT : OUT + row[NUM_EMITTED]]
        out.accepted[request].append(row[NUM_ACCEPTED])
        if not row[ACTIVE]:
            ended.add(request)
    return ended


def _repack(runner: Runner, requests: list[int], live: set[int]) -> list[int]:
    """Move the live rows together if a smaller bucket can then serve them."""
    if not live or runner.num_rows(len(live)) >= runner.num_rows(len(requests)):
        return requests
    keep = [row for row, request in enumerate(requests) if request in live]
    runner.state.repack(keep)
    return [requests[row] for row in keep]
