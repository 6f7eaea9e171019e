"""Engines' processes that start at once: forked from the server that has imported torch.

What a driver and an engine do, they do in a process of their own, with the pipes, the session and
the end of a real one. ``tests/engines/test_engine_process.py`` starts real ones.
"""

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from types import SimpleNamespace
from typing import IO, Any

import pytest

from cgbench.engines import engine_process
from tests.support.forkserver import fork_context


@contextmanager
def forked_engines() -> Iterator[None]:
    """Engines that are started meanwhile import no torch: each would do so anew."""
    names = ("PIPE", "STDOUT", "TimeoutExpired")
    real = {name: getattr(subprocess, name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_process, "subprocess", SimpleNamespace(Popen=ForkedChild, **real))
        yield


class ForkedChild:
    """What ``EngineProcess`` uses of ``subprocess.Popen``."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: int,
        pass_fds: tuple[int],
        env: Mapping[str, str],
        start_new_session: bool,
    ) -> None:
        assert (stdin, stderr) == (subprocess.PIPE, subprocess.STDOUT) and start_new_session
        _, script, driver, reply_fd = command
        assert (int(reply_fd),) == pass_fds
        reading, writing = os.pipe()
        self._process = fork_context().Process(
            target=_child,
            args=(script, driver, dict(env), *map(DupFd, (reading, stdout.fileno(), *pass_fds))),
        )
        self._process.start()
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("an engine", timeout or 0)
        return self._process.exitcode


def _child(script: str, driver: str, env: dict[str, str], calls: Any, log: Any, reply: Any) -> None:
    os.setsid()
    replies = reply.detach()
    for file, number in ((calls.detach(), 0), (log.detach(), 1)):
        os.dup2(file, number)
        os.close(file)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))
    sys.argv = [script, driver, str(replies)]
    runpy.run_path(script, run_name="__main__")
