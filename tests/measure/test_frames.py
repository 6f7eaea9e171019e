"""How deep the stack is where the timed pass replays a graph, as a profiler shows it."""

import sys
from pathlib import Path
from traceback import walk_stack

import pytest

from cgbench.engine.runner import EagerRunner
from tests.support.command import FAST, cgbench
from tests.support.tiny import make_checkpoint

PACKAGE = str(Path(sys.modules["cgbench"].__file__ or "").parent)
ENTRY = "run"
"""Where the measurement begins; before it the command reads its flags."""

MOST = 10


def test_at_most_ten_frames_from_the_entry_to_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", "llama")
    stacks: list[list[str]] = []
    step = EagerRunner.step

    def noted(runner: EagerRunner, batch_size: int) -> None:
        codes = [frame.f_code for frame, _ in walk_stack(sys._getframe())]
        names = [code.co_name for code in codes if code.co_filename.startswith(PACKAGE)]
        if "time_iterations" in names:
            stacks.append(names[: names.index(ENTRY) + 1])
        step(runner, batch_size)

    monkeypatch.setattr(EagerRunner, "step", noted)
    flags = ("--spec-tokens", "0", "--prompts", "random", "--output", tmp_path / "run")
    assert cgbench("run", checkpoint, *FAST, *flags).code == 0
    # A graph's runner has two of its own: its step, and the replay of the set.
    assert stacks and {len(names) + 2 <= MOST for names in stacks} == {True}, stacks[0]
