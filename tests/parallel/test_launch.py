"""How ranks are started is the caller's to choose."""

from typing import Any

import pytest

from cgbench.parallel import launch
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import Ranks


@pytest.mark.parametrize(
    ("asked", "method"),
    [
        ({}, "spawn"),
        ({"start_method": "forkserver"}, "forkserver"),
        ({"start_method": None}, "spawn"),
    ],
)
def test_ranks_are_started_as_asked_and_by_themselves_share_nothing(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], method: str
) -> None:
    started: list[object] = []
    monkeypatch.setattr(launch, "START_METHOD", "spawn")
    monkeypatch.setattr(launch, "_launched", lambda *given: started.extend(given))
    run_on_ranks(2, "cpu", print, "a line", **asked)
    assert started == [2, "cpu", method, print, ("a line",), {}]


def test_one_rank_needs_no_start() -> None:
    def total(*numbers: int, ranks: Ranks) -> int:
        return sum(numbers) * ranks.size

    assert run_on_ranks(1, "cpu", total, 1, 2, start_method="forkserver") == 3
