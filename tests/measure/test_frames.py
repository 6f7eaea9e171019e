"""How deep the stack is where the timed pass replays a graph, as a profiler shows it."""

import sys
from pathlib import Path
from traceback import walk_stack

import pytest

import cgbench
from cgbench.engine.runner import EagerRunner
from cgbench.request import (
    CaptureRequest,
    ModelRequest,
    RunRequest,
    TimingRequest,
    WorkloadRequest,
)
from cgbench.request.choices import Device
from tests.support.tiny import make_checkpoint

PACKAGE = str(Path(cgbench.__file__).parent)

MOST = 10


def test_at_most_ten_frames_from_the_call_to_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[list[str]] = []
    step = EagerRunner.step

    def noted(runner: EagerRunner, batch_size: int) -> None:
        codes = [frame.f_code for frame, _ in walk_stack(sys._getframe())]
        names = [code.co_name for code in codes if code.co_filename.startswith(PACKAGE)]
        if "time_iterations" in names:
            stacks.append(names)
        step(runner, batch_size)

    monkeypatch.setattr(EagerRunner, "step", noted)
    request = RunRequest(
        ModelRequest(ref=str(make_checkpoint(tmp_path / "tiny", "llama"))),
        CaptureRequest(spec_tokens=(0,)),
        WorkloadRequest("random", batch_sizes=(1,), max_new_tokens=8, context_len=12),
        TimingRequest(iterations=4, max_time_s=0.0),
        device=Device.CPU,
    )
    cgbench.run(request, tmp_path / "run")
    # A graph's runner has two of its own: its step, and the replay of the set.
    assert stacks and {len(names) + 2 <= MOST for names in stacks} == {True}, stacks[0]
    assert {names[-1] for names in stacks} == {"run"}
