"""Rounds are taken in turn, and a peer that fails is a row that says why."""

import re

from cgbench.engines.peer_rounds import MIN_ROUNDS, WARMUP_ROUNDS, PeerError, measure
from cgbench.progress import Silent
from tests.support.peers import Recorded


class Told(Silent):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def log(self, text: str) -> None:
        self.lines.append(re.sub(r"in [0-9.]+ s", "in N s", text))

    def at(self, title: str) -> None:
        self.lines.append(title)


def refuse() -> Recorded:
    raise PeerError("needs a CUDA device")


def test_rounds_are_taken_in_turn_after_every_peer_is_warm() -> None:
    log: list[str] = []
    results = measure(
        {"a": lambda: Recorded("a", log), "b": lambda: Recorded("b", log)},
        seconds=0,
        max_rounds=9,
    )
    warm = [f"{name}{i}" for name in "ab" for i in range(WARMUP_ROUNDS)]
    assert log == warm + [f"{name}{i}" for i in range(MIN_ROUNDS) for name in "ab"]
    assert [len(result.rounds) for result in results] == [MIN_ROUNDS] * 2


def test_a_peer_that_fails_is_a_row_that_says_why_and_the_others_go_on() -> None:
    log: list[str] = []
    makers = {
        "a": lambda: Recorded("a", log),
        "b": lambda: Recorded("b", log, fails_at=WARMUP_ROUNDS + 2),
        "c": refuse,
    }
    a, b, c = measure(makers, seconds=100, max_rounds=4)
    assert len(a.rounds) == 4 and a.reason is None
    assert len(b.rounds) == 1 and b.reason == "ValueError: a cause"
    assert c.rounds == [] and c.reason == "needs a CUDA device"


def test_all_that_happens_is_reported_as_it_happens() -> None:
    told, log = Told(), list[str]()
    makers = {"a": lambda: Recorded("a", log, fails_at=WARMUP_ROUNDS + 2), "c": refuse}
    measure(makers, seconds=100, max_rounds=4, progress=told)
    assert told.lines == [
        *("warm up a", "a: ready in N s", "warm up c", "c: not measured: needs a CUDA device"),
        *("round 1 of at most 4", "a: not measured: ValueError: a cause", "round 2 of at most 4"),
    ]
