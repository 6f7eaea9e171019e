"""What a run's time goes to. No torch here: the clock starts before torch is loaded."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of a run, counted from when the clock is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.audit_s = 0.0
        """What the short audits took so far."""

    @property
    def run_s(self) -> float:
        """Everything so far, audits included."""
        return time.perf_counter() - self._start

    @contextmanager
    def auditing(self) -> Iterator[None]:
        """Count what is done meanwhile as audit."""
        start = time.perf_counter()
        yield
        self.audit_s += time.perf_counter() - start
