"""Hold what a comparison of peers consists of: the rows, and what all rows share. There is no torch
here.
"""

from dataclasses import dataclass, field

import numpy as np

from cgbench.inputs import JsonObject
from cgbench.statistics import CONFIDENCE, blocks_estimate
from cgbench.words import Phase, Scope

DECODING = (
    *(f"{scope}{k}" for k in ("", "-k0") for scope in (Scope.ITERATION, Scope.PHASE, Scope.EAGER)),
    *("dynamic", "static", "mtp", "batch"),
)
"""Peers that decode: the rows of the first table, in its order."""

FORWARDS = (Phase.VERIFY.value, "verify-static", "verify-compiled")
"""Peers that run one forward of k + 1 tokens a request: the rows of the second table."""

PEERS = (*DECODING, *FORWARDS)


@dataclass(frozen=True, slots=True)
class Round:
    """A ``Round`` is ``seconds`` of wall time for ``steps`` decode steps (or forwards), which gave
    ``tokens``.
    """

    seconds: float
    steps: int
    tokens: float


@dataclass
class Result:
    """A ``Result`` is one peer's row. It holds its rounds, and the reason if there are none, or no
    more.
    """

    name: str
    rounds: list[Round] = field(default_factory=list)
    reason: str | None = None
    calls: int = 0
    """The number of commands that took its rounds."""

    def step_ms(self) -> tuple[float, float]:
        """Return the median of milliseconds per step, and half the width of its interval."""
        return _median([each.seconds / each.steps * 1e3 for each in self.rounds])

    def tokens_per_s(self) -> tuple[float, float]:
        """Return the median of tokens per second, and half the width of its interval."""
        return _median([each.tokens / each.seconds for each in self.rounds])

    def tokens_per_step(self) -> float:
        """Return the mean of tokens per step, over all rounds."""
        return sum(r.tokens for r in self.rounds) / sum(r.steps for r in self.rounds)


def _median(values: list[float]) -> tuple[float, float]:
    """Return the median and half the width of its interval, computed as the gate does.

    The error is the bootstrap's standard error of a median, widened by what neighbouring rounds
    share. The interval uses Student's t.
    """
    estimate = blocks_estimate(np.array(values))
    return estimate.value, estimate.half_width(CONFIDENCE)


@dataclass(frozen=True)
class SharedFacts:
    """A ``SharedFacts`` holds what every row shares, in the order of the file. ``environment`` is
    the machine as a run records it. ``context_len`` and ``new_tokens`` are tokens per request.
    """

    command: str
    model: str
    head: str
    dtype: str
    attention: str
    compile: str
    acceptance: str
    spec_tokens: int
    batch_size: int
    context_len: int
    new_tokens: int
    notes: list[str]
    environment: JsonObject


@dataclass(frozen=True, slots=True)
class PeerTable:
    """A ``PeerTable`` is the result of a comparison of peers. It has a row for each peer, measured
    or not.
    """

    facts: SharedFacts
    rows: list[Result]
