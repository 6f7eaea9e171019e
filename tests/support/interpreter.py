"""Triton kernels on a CPU: through its interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tests.support.forkserver import PRELOADED
from tests.support.quick_python import quick_python


def run_interpreted(code: str) -> str:
    """What ``code`` prints, in a process of its own, for Triton reads TRITON_INTERPRET once."""
    preloaded = ("pytest", "tests.support.quick_interpreter", *PRELOADED)
    done = subprocess.run(
        [quick_python(*preloaded, interpreted=True), "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def check_interpreted(
    error: Callable[[Any, str, torch.dtype], float], cases: Sequence[object], *, below: float
) -> None:
    """``error(case, "cpu", torch.float32)`` is ``below`` this for each of ``cases``, which the
    module of ``error`` calls ``CASES``."""
    code = (
        # Scripts' packages are on pytest's path.
        f"import sys\nsys.path[:0] = {sys.path!r}\n"
        f"from {error.__module__} import CASES, {error.__name__}\n"
        "import torch\n"
        "for case in CASES:\n"
        f"    error = {error.__name__}(case, 'cpu', torch.float32)\n"
        f"    assert error < {below}, (case, error)\n"
        "print(len(CASES), 'cases')"
    )
    assert f"{len(cases)} cases" in run_interpreted(code)
