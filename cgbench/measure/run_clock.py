"""Count the seconds of a run, and those of its audits. The clock starts before torch is loaded, so
there is no torch here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """A ``Clock`` counts the seconds of a run from its own creation on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.audit_s = 0.0
        """What the short audits took so far."""

    @property
    def run_s(self) -> float:
        """Return the seconds of the run so far, audits included."""
        return time.perf_counter() - self._start

    @contextmanager
    def auditing(self) -> Iterator[None]:
        """Count what is done meanwhile as audit."""
        start = time.perf_counter()
        yield
        self.audit_s += time.perf_counter() - start
