"""End at once when the user interrupts an import."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a process that an interrupt has ended, as shells state it."""

_IMPORTLIB = "<frozen importlib"


@contextmanager
def end_where_imports_would_break() -> Iterator[None]:
    """End the process if an interrupt meets an import inside the context.

    Libraries catch what their imports raise, or are left half imported. Then another error follows,
    long after the interrupt. Elsewhere an interrupt raises ``KeyboardInterrupt``, as ever. Whoever
    has a handler of their own keeps it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTLIB):
            sys.stderr.write("interrupted\n")
            sys.stderr.flush()
            # An orderly end would go through what is half imported.
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt
