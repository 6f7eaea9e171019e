"""Interleaved rounds: every peer in turn, again and again, so that drift hits all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from cgbench.engines.peer_rows import Result, Round
from cgbench.progress import SILENT, Progress

# Compiled peers compile in their first round and record their graphs in the second and third.
WARMUP_ROUNDS = 3
MIN_ROUNDS = 3

VERIFY_CALLS = 20
"""Forwards of one round of a row of forwards."""


class PeerError(Exception):
    """Why a peer cannot be measured here: one line, the text of its row."""


class Peer(Protocol):
    """Something that decodes: its prompts are prefilled by it, or when it is made."""

    def round(self, seed: int) -> Round:
        """Decode once, by steps that are timed. ``seed`` is for its draws, if it has any."""
        ...


class Engine(Protocol):
    """One engine with its weights, and the ways in which it can decode."""

    def peers(self) -> dict[str, Callable[[], Peer]]:
        """Each way by the name of its row. Calling one starts what it needs, and raises
        ``PeerError`` where this machine or this model has no such way."""
        ...

    def stop(self) -> None:
        """Free its graphs: they go before the process does."""
        ...


Keep = Callable[[list[Result]], object]


def measure(
    makers: Mapping[str, Callable[[], Peer]],
    earlier: Sequence[Result] = (),
    *,
    seconds: float,
    max_rounds: int,
    keep: Keep = lambda results: None,
    progress: Progress = SILENT,
) -> list[Result]:
    """Make and warm every peer that lacks rounds, then take rounds in turn until ``seconds`` are
    used up, three rounds at least. A peer that fails is a row that says why, and the others go on.

    ``earlier`` rows, of commands before this one, are added to: to ``max_rounds`` in all. ``keep``
    gets all rows after each round, and when a peer fails to get ready.
    """
    found = {result.name: result for result in earlier}
    results = {**{name: Result(name) for name in makers}, **found}
    rows = list(results.values())
    peers: list[tuple[Result, Peer | None]] = []
    with progress.bar("warm up", len(makers)) as bar:
        for name, make in makers.items():
            bar.at(f"warm up {name}")
            if _is_open(results[name], max_rounds):
                peers.append((results[name], _ready(results[name], make, progress)))
                keep(rows)
            bar.advance()
    started = time.perf_counter()
    with progress.bar("rounds", max_rounds) as bar:
        for number in range(max_rounds):
            if number >= MIN_ROUNDS and time.perf_counter() - started > seconds:
                break
            turns = [(row, peer) for row, peer in peers if peer and _is_open(row, max_rounds)]
            if not turns:
                break
            for row, peer in turns:
                row.calls += not number
                _take(row, peer, progress)
            keep(rows)
            bar.advance()
            progress.log(f"round {number + 1} of at most {max_rounds}")
    return rows


def _is_open(result: Result, max_rounds: int) -> bool:
    return result.reason is None and len(result.rounds) < max_rounds


def _ready(result: Result, make: Callable[[], Peer], progress: Progress) -> Peer | None:
    started = time.perf_counter()
    try:
        peer = make()
        for number in range(WARMUP_ROUNDS):
            peer.round(number)
    # Whatever a library of another version raises, the row says it.
    except Exception as error:
        _fail(result, error, progress)
        return None
    progress.log(f"{result.name}: ready in {time.perf_counter() - started:.1f} s")
    return peer


def _take(result: Result, peer: Peer, progress: Progress) -> None:
    try:
        result.rounds.append(peer.round(len(result.rounds)))
    except Exception as error:
        _fail(result, error, progress)


def _fail(result: Result, error: Exception, progress: Progress) -> None:
    first_line = str(error).strip().partition("\n")[0]
    kind = "" if isinstance(error, PeerError) else f"{type(error).__name__}: "
    result.reason = f"{kind}{first_line}"
    progress.say(f"{result.name}: not measured: {result.reason}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
