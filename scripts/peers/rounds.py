"""Interleaved rounds: every peer in turn, again and again, so that drift hits all alike."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from cgbench.statistics import CONFIDENCE, blocks_estimate

# Compiled peers compile in their first round and record their graphs in the second and third.
WARMUP_ROUNDS = 3
MIN_ROUNDS = 3


class PeerError(Exception):
    """Why a peer cannot be measured here: one line, the text of its row."""


@dataclass(frozen=True, slots=True)
class Round:
    """``seconds`` of wall time for ``steps`` decode steps (or forwards), which gave ``tokens``."""

    seconds: float
    steps: int
    tokens: float


class Peer(Protocol):
    """Something that decodes: ready when made, ``seed`` for its draws if it has any."""

    def round(self, seed: int) -> Round: ...


@dataclass
class Result:
    """One peer's row: its rounds, and the reason that there are none, or no more."""

    name: str
    rounds: list[Round] = field(default_factory=list)
    reason: str | None = None
    calls: int = 0
    """Of the script, that took its rounds."""

    def step_ms(self) -> tuple[float, float]:
        """Median milliseconds a step, and half the width of its interval."""
        return _median([each.seconds / each.steps * 1e3 for each in self.rounds])

    def tokens_per_s(self) -> tuple[float, float]:
        return _median([each.tokens / each.seconds for each in self.rounds])

    def tokens_per_step(self) -> float:
        return sum(r.tokens for r in self.rounds) / sum(r.steps for r in self.rounds)


def _median(values: list[float]) -> tuple[float, float]:
    """As the gate has it: the bootstrap's standard error of a median, widened by what neighbouring
    rounds share, and Student's t."""
    estimate = blocks_estimate(np.array(values))
    return estimate.value, estimate.half_width(CONFIDENCE)


def measure(
    makers: Mapping[str, Callable[[], Peer]],
    earlier: Sequence[Result] = (),
    *,
    seconds: float,
    max_rounds: int,
    keep: Callable[[list[Result]], object] = lambda results: None,
) -> list[Result]:
    """Make and warm every peer that lacks rounds, then take rounds in turn until ``seconds`` are
    used up, three rounds at least. A peer that fails is a row that says why, and the others go on.

    ``earlier`` rows, of calls before this one, are added to: to ``max_rounds`` in all. ``keep`` is
    told all rows after each round, and when a peer fails to get ready.
    """
    found = {result.name: result for result in earlier}
    results = {**{name: Result(name) for name in makers}, **found}
    rows = list(results.values())
    peers = []
    for name, make in makers.items():
        if _is_open(results[name], max_rounds):
            peers.append((results[name], _ready(results[name], make)))
            keep(rows)
    started = time.perf_counter()
    for number in range(max_rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        turns = [(row, peer) for row, peer in peers if peer and _is_open(row, max_rounds)]
        if not turns:
            break
        for row, peer in turns:
            row.calls += not number
            _take(row, peer)
        keep(rows)
        _say(f"round {number + 1} of at most {max_rounds}")
    return rows


def _is_open(result: Result, max_rounds: int) -> bool:
    return result.reason is None and len(result.rounds) < max_rounds


def _ready(result: Result, make: Callable[[], Peer]) -> Peer | None:
    started = time.perf_counter()
    try:
        peer = make()
        for number in range(WARMUP_ROUNDS):
            peer.round(number)
    # Whatever a library of another version raises, the row says it.
    except Exception as error:
        _fail(result, error)
        return None
    _say(f"{result.name}: ready in {time.perf_counter() - started:.1f} s")
    return peer


def _take(result: Result, peer: Peer) -> None:
    try:
        result.rounds.append(peer.round(len(result.rounds)))
    except Exception as error:
        _fail(result, error)


def _fail(result: Result, error: Exception) -> None:
    first_line = str(error).strip().partition("\n")[0]
    kind = "" if isinstance(error, PeerError) else f"{type(error).__name__}: "
    result.reason = f"{kind}{first_line}"
    _say(f"{result.name}: not measured: {result.reason}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of ``count`` calls, one after another, the device idle before and after."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        work()
    synchronize(device)
    return time.perf_counter() - start
