"""The clock of stepped drivers, on an engine that launches ahead of its results."""

import pytest

from cgbench.engines.drivers import driver
from cgbench.engines.drivers.driver import SteppedDriver

STEP_S = 10.0
AHEAD = 2


class Ahead(SteppedDriver):
    """Its device takes ``STEP_S`` a step, and its host has up to ``AHEAD`` steps on their way."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: list[float] = []

    def step(self) -> list[int]:
        while len(self.ends) <= AHEAD:
            begin = max(self.now, self.ends[-1] if self.ends else 0.0)
            self.ends.append(begin + STEP_S)
        self.now = max(self.now, self.ends.pop(0))
        return [1]

    def synchronize(self) -> None:
        self.now = max(self.now, *self.ends)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Ahead:
    made = Ahead()
    monkeypatch.setattr(driver.time, "perf_counter", lambda: made.now)
    return made


@pytest.mark.parametrize("untimed", [4, 8])
def test_steps_on_their_way_are_no_gift_to_the_clock(ahead: Ahead, untimed: int) -> None:
    """Every step takes what the device takes, so the mean is the median."""
    for _ in range(3):
        found = ahead.steps(16, untimed)
        assert found.wall_s == [STEP_S] * 16
        assert found.untimed == [untimed]
        # Another engine's block comes between.
        ahead.now += 500.0


def test_without_untimed_steps_the_device_is_waited_for(ahead: Ahead) -> None:
    ahead.step()
    found = ahead.steps(4, 0)
    assert found.untimed == [] and found.wall_s[-1] == STEP_S
