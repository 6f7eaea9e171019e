"""Define what a driver of an engine offers, and the steps that drivers share."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from cgbench.engines.drivers.device_time import profile_steps
from cgbench.engines.drivers.messages import (
    Prefill,
    Prefilled,
    Profiled,
    Start,
    Started,
    Stepped,
)


class Driver(Protocol):
    """A ``Driver`` runs one engine: it starts it, prefills a batch, and steps through decode."""

    def start(self, asked: Start) -> Started:
        """Start the engine and capture its graphs."""
        ...

    def prefill(self, asked: Prefill) -> Prefilled:
        """Begin a batch, in place of the one before, and run it to each request's first token."""
        ...

    def steps(self, count: int, untimed: int) -> Stepped:
        """Time ``count`` steps of the batch, after ``untimed`` ones."""
        ...

    def profile(self, count: int, untimed: int) -> Profiled:
        """Profile ``count`` steps of the batch, after ``untimed`` ones."""
        ...

    def tokens(self) -> list[list[int]]:
        """Return the tokens that each request of the batch has decoded."""
        ...

    def stop(self) -> None:
        """Free what must be freed before the process ends."""
        ...


class SteppedDriver(ABC):
    """A ``SteppedDriver`` is a driver whose engine makes one step at a time, timed here."""

    @abstractmethod
    def step(self) -> list[int]:
        """Make one step and return how many tokens each request got."""

    def synchronize(self) -> None:
        """Wait for the device, if there is one."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def steps(self, count: int, untimed: int) -> Stepped:
        """Time ``count`` steps, each from the result before it to its own.

        An engine may launch steps ahead. To wait for the device here would end those before the
        clock starts, and their results would take no time.
        """
        before = _totals(self.step, untimed)
        if not untimed:
            self.synchronize()
        wall_s, emitted = [], []
        last = time.perf_counter()
        for _ in range(count):
            emitted.append(self.step())
            now = time.perf_counter()
            wall_s.append(now - last)
            last = now
        return Stepped(wall_s, emitted, before, memory_bytes=peak_memory_bytes())

    def profile(self, count: int, untimed: int) -> Profiled:
        """Profile ``count`` steps."""
        _totals(self.step, untimed)
        return profile_steps(self.step, count, self.synchronize)


def _totals(step: Callable[[], list[int]], count: int) -> list[int]:
    """Return each request's tokens of ``count`` steps."""
    return [sum(each) for each in zip(*(step() for _ in range(count)), strict=True)]


def peak_memory_bytes() -> int | None:
    """Return the most device memory that torch had reserved, or the process's own peak without a
    device.
    """
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
