"""Time peers in interleaved rounds: every peer in turn, again and again, so that drift hits all
alike.
"""

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
"""The number of forwards in one round of a peer that runs forwards."""


class PeerError(Exception):
    """This error explains in one line why a peer cannot be measured here. The line is the text of
    its row.
    """


class Peer(Protocol):
    """A ``Peer`` decodes its prompts in one way. They are prefilled in each round, or when the peer
    is made.
    """

    def round(self, seed: int) -> Round:
        """Decode once, by steps that are timed. ``seed`` is for the peer's draws, if it has any."""
        ...


class Engine(Protocol):
    """An ``Engine`` is one engine with its weights, and the ways in which it can decode."""

    def peers(self) -> dict[str, Callable[[], Peer]]:
        """Return each way of decoding by the name of its row.

        Calling one starts what it needs. The call raises ``PeerError`` if this machine or this
        model has no such way.
        """
        ...

    def stop(self) -> None:
        """Free the engine's graphs, because they must go before the process does."""
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
    """Make and warm every peer that lacks rounds, then take rounds in turn, and return all rows.

    Rounds end when ``seconds`` are used up or ``max_rounds`` are taken, but at least three are
    taken. A peer that fails leaves its reason in its row, and the others go on.

    ``earlier`` rows, from commands before this one, are added to until they have ``max_rounds``.
    ``keep`` gets all rows after each round, and after each peer is warm or has failed to get ready.
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
    # A library of another version may raise anything, and the row reports it.
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
