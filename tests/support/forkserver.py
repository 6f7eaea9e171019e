"""The one server that tests fork their processes from, with what those import already imported.

Python keeps one fork server a process, and what it imports is settled when it starts: everything
that any test starts processes for is named here.
"""

import faulthandler
import multiprocessing
import os
import select
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any, NoReturn, TextIO, cast

import pytest

PRELOADED = (
    "cgbench.cli.console",
    "cgbench.door.run_writer",
    "cgbench.measure.setup",
    "pydantic",
    "transformers.models.qwen2.modeling_qwen2",
    "tests.support.hybrid_jobs",
    "tests.support.killing",
    "tests.support.quick_limits",
    "tests.support.rank_faults",
    "tests.support.rank_jobs",
)


def fork_the_server() -> None:
    """Fork the server from this process, before any test has run here.

    Python would start it anew, and import again what tests have imported. CUDA works in no process
    that is forked from one that has asked for devices.
    """
    resource_tracker.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.util.spawnv_passfds", _fork_instead)
        forkserver.ensure_running()


def _fork_instead(_program: Any, _words: Any, files: Sequence[int]) -> int:
    return os.fork() or _serve(*files)


def _serve(listener: int, alive: int) -> NoReturn:
    try:
        _leave_pytest({listener, alive})
        # Whoever asks for no process waits for no import.
        if alive not in select.select([listener, alive], [], [])[0]:
            forkserver.main(listener, alive, PRELOADED)
    finally:
        os._exit(0)


def _leave_pytest(files: set[int]) -> None:
    """Keep ``files`` and the standard ones alone open, and report errors as Python does.

    Another file's number stays taken, because an object that still has it may close it.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in {0, 1, 2, nowhere, *files}:
            os.dup2(nowhere, number, inheritable=False)
    sys.stdout, sys.stderr = (
        cast(TextIO, open(number, "w", buffering=1, closefd=False)) for number in (1, 2)
    )
    faulthandler.disable()
    sys.unraisablehook = sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__


def fork_context() -> ForkServerContext:
    """A context whose processes start in milliseconds; nothing has run in the server.

    It is started here: whoever asks for another list of modules afterwards gets this one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()
    return context


@contextmanager
def forked_ranks() -> Iterator[None]:
    """Ranks are forked from the server meanwhile: spawned, each would import everything anew."""
    fork_context()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cgbench.parallel.launch.START_METHOD", "forkserver")
        yield
