"""Read from ``/metrics`` how many drafts an engine made and kept.

vLLM counts drafts, draft tokens and accepted tokens, the last by position too. SGLang counts its
verify calls and the tokens that it generated. The names are those of vLLM 0.33 and SGLang 0.5.23.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from math import isfinite

from cgbench.endpoint.http_server import Server
from cgbench.errors import EndpointError

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_POSITION = re.compile(r'(?:^|,)\s*position="(\d+)"')

_VLLM = "vllm:spec_decode_num_"
_SGLANG_CALLS = "sglang:spec_verify_calls_total"
_SGLANG_TOKENS = "sglang:generation_tokens_total"
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")


@dataclass(frozen=True, slots=True)
class Drafted:
    """A ``Drafted`` counts the drafts of some requests together.

    ``num_drafts`` counts how often a request drafted, ``accepted`` the draft tokens that were kept.
    ``by_position`` divides ``accepted`` by draft position, if the engine counts it.
    """

    num_drafts: float
    accepted: float
    by_position: tuple[float, ...] = ()

    def __add__(self, other: "Drafted") -> "Drafted":
        longest = max(len(self.by_position), len(other.by_position))
        sides = [(*each.by_position, *[0.0] * longest)[:longest] for each in (self, other)]
        return Drafted(
            self.num_drafts + other.num_drafts,
            self.accepted + other.accepted,
            tuple(left + right for left, right in zip(*sides, strict=True)),
        )

    @property
    def mean_accepted(self) -> float:
        """Return the mean number of draft tokens kept a draft."""
        return self.accepted / self.num_drafts if self.num_drafts else 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading holds the values of ``/metrics`` at one time.

    They are summed over all labels but ``position``.
    """

    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def running(self) -> float | None:
        """Return how many requests the engine runs, or None if it has no such gauge."""
        return next((self.values[name] for name in _RUNNING if name in self.values), None)

    @property
    def counts_drafts(self) -> bool:
        """Return whether the engine counts drafts."""
        return self._vllm("drafts") is not None or _SGLANG_CALLS in self.values

    def drafted_since(self, before: "Reading", num_requests: int) -> Drafted | None:
        """Return the drafts between two readings, or None if the engine does not count them.

        ``num_requests`` ended in between. SGLang counts the token of their prefill too.
        """
        drafts, accepted = (self._since(before, name) for name in ("drafts", "accepted_tokens"))
        if drafts is not None and accepted is not None:
            return Drafted(drafts, accepted, self._positions_since(before))
        if _SGLANG_CALLS not in self.values or _SGLANG_TOKENS not in self.values:
            return None
        calls, tokens = (
            self.values[name] - before.values.get(name, 0.0)
            for name in (_SGLANG_CALLS, _SGLANG_TOKENS)
        )
        return Drafted(calls, max(tokens - num_requests - calls, 0.0))

    def _vllm(self, name: str) -> float | None:
        whole = f"{_VLLM}{name}"
        return self.values.get(f"{whole}_total", self.values.get(whole))

    def _since(self, before: "Reading", name: str) -> float | None:
        now = self._vllm(name)
        return None if now is None else now - (before._vllm(name) or 0.0)

    def _positions_since(self, before: "Reading") -> tuple[float, ...]:
        names = (f"accepted_tokens_per_pos_total/{position}" for position in count())
        found: list[float] = []
        for name in names:
            value = self.values.get(f"{_VLLM}{name}")
            if value is None:
                return tuple(found)
            found.append(value - before.values.get(f"{_VLLM}{name}", 0.0))
        return ()


def sum_of(drafted: Iterable[Drafted]) -> Drafted | None:
    """Return the drafts of all requests together, or None if there are none."""
    found = [*drafted]
    return reduce(Drafted.__add__, found) if found else None


def read_counters(server: Server) -> Reading:
    """Return the current reading of ``/metrics``. It is empty if there is no such page."""
    try:
        text = server.get_text("/metrics")
    except EndpointError:
        text = None
    return parse_counters(text or "")


def parse_counters(text: str) -> Reading:
    """Read counters in Prometheus' text format. Lines of another form are left out."""
    values: defaultdict[str, float] = defaultdict(float)
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if found is None:
            continue
        name, labels, number = found.groups()
        position = _POSITION.search(labels or "")
        if position is not None:
            name = f"{name.removesuffix('_total')}_total/{position[1]}"
        try:
            value = float(number)
        except ValueError:
            continue
        if isfinite(value):
            values[name] += value
    return Reading(dict(values))
