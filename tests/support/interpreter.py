"""Triton kernels on a CPU: through its interpreter.

Triton reads TRITON_INTERPRET once, so that kernels are interpreted in processes of their own. They
are forked from one server, which has imported what they import.
"""

import atexit
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

SERVER = """
import pytest, triton.runtime.interpreter
import cgbench.measure.setup, tests.support.rank_jobs
from tests.support.interpreter import serve
serve()
"""


def run_interpreted(code: str) -> str:
    """What ``code`` prints, in a process of its own."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "errors")]
        print(json.dumps([code, *map(str, files)]), file=server.stdin, flush=True)
        status = server.stdout.readline().strip()
        out, errors = (file.read_text() for file in files)
    assert status == "0", errors[-2000:]
    return out


@cache
def _server() -> subprocess.Popen[str]:
    """It ends when its input does."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def serve() -> None:
    """Fork for every line: a JSON list of code, and the files for what it prints and its errors."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _be_child(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _be_child(code: str, *files: str) -> None:
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    status = 1
    try:
        exec(code, {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def check_interpreted(
    error: Callable[[Any, str, torch.dtype], float], cases: Sequence[object], *, below: float
) -> None:
    """``error(case, "cpu", torch.float32)`` is ``below`` this for each of ``cases``, which the
    module of ``error`` calls ``CASES``."""
    code = (
        f"from {error.__module__} import CASES, {error.__name__}\n"
        "import torch\n"
        "for case in CASES:\n"
        f"    error = {error.__name__}(case, 'cpu', torch.float32)\n"
        f"    assert error < {below}, (case, error)\n"
        "print(len(CASES), 'cases')"
    )
    assert f"{len(cases)} cases" in run_interpreted(code)
