"""An engine's process: its answers, its end, and what is left of it afterwards."""

import os
import time
from pathlib import Path

import pytest

from cgbench.engines.drivers.messages import Prefill, Start
from cgbench.engines.engine_process import EngineError, EngineProcess, Launch

DRIVER = """\
import os, subprocess, sys, time
from cgbench.engines.drivers.driver import SteppedDriver
from cgbench.engines.drivers.messages import Prefilled, Started

class Driver(SteppedDriver):
    def start(self, asked):
        print("the engine prints", asked.model, repr(sys.stdin.read()), flush=True)
        if asked.model == "child":
            # It holds the pipe open after the engine has gone.
            if os.fork() == 0:
                time.sleep(60)
            os._exit(9)
        return Started("1.0", 0.1, 0.2, facts={"pid": str(os.getpid())})

    def prefill(self, asked):
        if asked.new_tokens == 1:
            time.sleep(60)
        if asked.new_tokens == 2:
            os.kill(os.getpid(), 11)
        return Prefilled(0.1, 1, [1] * len(asked.prompts))

    def step(self):
        return [1, 2]

    def tokens(self):
        return [[1], [2, 3]]

    def stop(self):
        print("the engine stops", flush=True)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "small_driver.py").write_text(DRIVER)
    return tmp_path


def process_of(site: Path) -> EngineProcess:
    return EngineProcess(Launch("small", "small_driver:Driver", site=site), site / "small.log")


def start_of(model: str = "m") -> Start:
    return Start(model, [0], 4, 64, 128, "float32", "cpu")


def begin(process: EngineProcess) -> int:
    process.start(start_of())
    return int(process.started(60).facts["pid"])


def is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_calls_are_answered_and_the_engines_output_is_its_log(site: Path) -> None:
    process = process_of(site)
    pid = begin(process)
    assert process.prefill(Prefill(0, [[1], [2]], 8), 20).emitted == [1, 1]
    stepped = process.steps(3, 2, 20)
    assert stepped.emitted == [[1, 2]] * 3 and stepped.untimed == [2, 4]
    assert len(stepped.wall_s) == 3 and min(stepped.wall_s) > 0
    assert process.profile(2, 1, 60).emitted == [2, 4]
    assert process.tokens(20) == [[1], [2, 3]]
    process.stop()
    assert is_gone(pid)
    # The engine has an empty standard input, whatever it starts.
    lines = process.log.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("the engine prints m ''", "the engine stops")
    with pytest.raises(EngineError, match="small was stopped"):
        process.tokens(1)


def test_a_call_that_takes_too_long_ends_the_process(site: Path) -> None:
    process = process_of(site)
    pid = begin(process)
    with pytest.raises(EngineError, match=r"small prefill took more than 0.5 s. Its log is"):
        process.prefill(Prefill(0, [[1]], 1), 0.5)
    assert is_gone(pid)
    # Later calls report the same reason.
    with pytest.raises(EngineError, match="took more than"):
        process.steps(1, 1, 1)
    process.stop()


def test_a_signal_is_named(site: Path) -> None:
    process = process_of(site)
    begin(process)
    with pytest.raises(EngineError, match="small ended in prefill with signal 11"):
        process.prefill(Prefill(0, [[1]], 2), 20)


def test_an_end_is_seen_though_a_child_holds_the_pipe(site: Path) -> None:
    process = process_of(site)
    process.start(start_of("child"))
    with pytest.raises(EngineError, match="small ended in start with exit code 9"):
        process.started(60)


def test_a_driver_that_cannot_be_imported_is_a_failed_start(tmp_path: Path) -> None:
    process = EngineProcess(Launch("small", "no_such_driver:Driver"), tmp_path / "x.log")
    process.start(start_of())
    with pytest.raises(EngineError, match="small start: ModuleNotFoundError: No module named"):
        process.started(60)
    assert "Traceback" in (tmp_path / "x.log").read_text()
