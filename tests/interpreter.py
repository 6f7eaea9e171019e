"""Triton kernels on a CPU: through its interpreter."""

import os
import subprocess
import sys


def run_interpreted(code: str) -> str:
    """What ``code`` prints, in a process of its own, for Triton reads TRITON_INTERPRET once."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
