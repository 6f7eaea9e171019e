"""Start an engine in a process of its own, and call it over pipes with a time limit."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cgbench.engines.drivers import messages
from cgbench.engines.drivers.messages import (
    Prefill,
    Prefilled,
    Profiled,
    Start,
    Started,
    Stepped,
)
from cgbench.inputs import JsonObject

CHILD = Path(__file__).parent / "drivers" / "engine_child.py"

STOP_S = 20.0

LOOK_S = 1.0
"""How often a process is looked after while it is waited for, in seconds."""

_T = TypeVar("_T")


class EngineError(Exception):
    """This error means that an engine failed, ended or took too long. The message is one line that
    names its log.

    ``is_memory`` is true if it ran out of device memory.
    """

    def __init__(self, message: str, *, is_memory: bool = False) -> None:
        super().__init__(message)
        self.is_memory = is_memory


@dataclass(frozen=True, slots=True)
class Launch:
    """A ``Launch`` states how an engine's process is started.

    ``driver`` is ``module:class``. ``site`` is a folder of packages that comes first on the path.
    ``environment`` is added to that of this process. ``begins_anew``: every block of the engine
    begins at the state after prefill.
    """

    name: str
    driver: str
    python: str = sys.executable
    site: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    begins_anew: bool = False


class EngineProcess:
    """An ``EngineProcess`` is a running child that answers one call at a time.

    What the engine prints goes to ``log``. The process has a group of its own, so that ending it
    ends what it started.
    """

    def __init__(self, launch: Launch, log: Path) -> None:
        self.name = launch.name
        self.log = log
        self.begins_anew = launch.begins_anew
        self._buffer = b""
        self._error: EngineError | None = None
        reading, writing = os.pipe()
        with log.open("ab") as out:
            self._child = subprocess.Popen(
                command_of(launch, writing),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                env=environment_of(launch),
                start_new_session=True,
            )
        os.close(writing)
        self._replies = reading

    def send(self, name: str, asked: Any = None) -> None:
        """Send a call without waiting.

        Raise ``EngineError`` if the process has ended, with the reason why it did.
        """
        if self._error is not None:
            raise self._error
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(messages.call_line(name, asked).encode())
            self._child.stdin.flush()
        except OSError:
            raise self._ended(name) from None

    def receive(self, name: str, timeout_s: float) -> JsonObject:
        """Return the answer of the call ``name``.

        Raise ``EngineError`` if the engine failed, ended, or took longer than ``timeout_s``. It is
        ended then.
        """
        line = self._line(name, time.monotonic() + timeout_s, timeout_s)
        try:
            answer = json.loads(line)
        except ValueError:
            raise self._failed(f"answered {name} with no JSON") from None
        if "failed" in answer:
            raise self._failed(f"{name}: {answer['failed']}", is_memory=answer["is_memory"])
        done: JsonObject = answer["done"]
        return done

    def _line(self, name: str, deadline: float, timeout_s: float) -> bytes:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._failed(f"{name} took more than {timeout_s:g} s")
            if not select.select([self._replies], [], [], min(left, LOOK_S))[0]:
                # What the engine started may hold the pipe open after its end.
                if self._child.poll() is not None:
                    raise self._ended(name)
                continue
            chunk = os.read(self._replies, 1 << 16)
            if not chunk:
                raise self._ended(name)
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def call(self, kind: type[_T], name: str, asked: Any, timeout_s: float) -> _T:
        """Call and return the answer as ``kind``."""
        self.send(name, asked)
        try:
            return messages.read_as(kind, self.receive(name, timeout_s))
        except TypeError:
            raise self._failed(f"answered {name} with other fields") from None

    def start(self, asked: Start) -> None:
        """Begin to start the engine. ``started`` waits for it."""
        self.send(messages.START, asked)

    def started(self, timeout_s: float) -> Started:
        """Return the engine's answer once it is ready."""
        return messages.read_as(Started, self.receive(messages.START, timeout_s))

    def prefill(self, asked: Prefill, timeout_s: float) -> Prefilled:
        """Begin a batch."""
        return self.call(Prefilled, messages.PREFILL, asked, timeout_s)

    def steps(self, count: int, untimed: int, timeout_s: float) -> Stepped:
        """Time ``count`` steps after ``untimed`` ones."""
        return self.call(Stepped, messages.STEPS, _Steps(count, untimed), timeout_s)

    def profile(self, count: int, untimed: int, timeout_s: float) -> Profiled:
        """Profile ``count`` steps after ``untimed`` ones."""
        return self.call(Profiled, messages.PROFILE, _Steps(count, untimed), timeout_s)

    def tokens(self, timeout_s: float) -> list[list[int]]:
        """Return the tokens of each request of the batch."""
        self.send(messages.TOKENS)
        found: list[list[int]] = self.receive(messages.TOKENS, timeout_s)["tokens"]
        return found

    def stop(self) -> None:
        """End the engine: ask first, then end its process group."""
        if self._child.poll() is None:
            try:
                self.send(messages.STOP)
                self.receive(messages.STOP, STOP_S)
                self._child.wait(STOP_S)
            except (EngineError, subprocess.TimeoutExpired):
                pass
        self._end()
        if self._error is None:
            self._error = EngineError(f"{self.name} was stopped. Its log is {self.log}")

    def _end(self) -> None:
        """End whatever is left of the process group, and close the pipes."""
        if self._replies < 0:
            return
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._child.wait()
        if self._child.stdin is not None and not self._child.stdin.closed:
            try:
                self._child.stdin.close()
            except OSError:
                pass
        os.close(self._replies)
        self._replies = -1

    def _ended(self, name: str) -> EngineError:
        try:
            code = self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return self._failed(f"closed its pipe in {name}")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return self._failed(f"ended in {name} with {how}")

    def _failed(self, reason: str, *, is_memory: bool = False) -> EngineError:
        self._end()
        message = f"{self.name} {reason}. Its log is {self.log}"
        self._error = EngineError(message, is_memory=is_memory)
        return self._error


@dataclass(frozen=True)
class _Steps:
    count: int
    untimed: int


def command_of(launch: Launch, reply_fd: int) -> Sequence[str]:
    """Return the words that start the child."""
    return [launch.python, str(CHILD), launch.driver, str(reply_fd)]


def environment_of(launch: Launch) -> dict[str, str]:
    """Return the child's environment. Its output is not buffered, so a kill loses no line."""
    made = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **launch.environment}
    if launch.site is not None:
        rest = made.get("PYTHONPATH")
        made["PYTHONPATH"] = os.pathsep.join([str(launch.site), *([rest] if rest else [])])
    return made
