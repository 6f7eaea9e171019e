"""An interrupt ends an import at once, and is a ``KeyboardInterrupt`` elsewhere."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cgbench.cli.interrupts import INTERRUPTED, end_where_imports_would_break

SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**6):
        pass
except BaseException:
    raise ImportError("half imported")
"""


def test_a_library_that_swallows_an_interrupt_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cgbench.cli.interrupts import end_where_imports_would_break\n"
        "with end_where_imports_would_break():\n"
        "    import swallows\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


def test_elsewhere_it_is_raised_and_the_handler_is_put_back() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), end_where_imports_would_break():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_one_s_own_is_kept() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with end_where_imports_would_break():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
