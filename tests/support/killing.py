"""Real runs in processes of their own, which a test can kill.

They are forked from a server that has imported what a run imports: a process is killed where it
works, not where it loads.
"""

import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch

from tests.support.forkserver import fork_context
from tests.support.short_runs import take_few_blocks


@dataclass(frozen=True)
class Runs:
    """``cgbench WORDS --output FOLDER/name``, run again and again."""

    words: tuple[str, ...]
    folder: Path
    context: ForkServerContext

    @classmethod
    def make(cls, words: tuple[object, ...], folder: Path) -> "Runs":
        return cls(tuple(map(str, words)), folder, fork_context())

    def start(self, name: str, *more: str) -> ForkServerProcess:
        words = [*self.words, "--output", str(self.folder / name), *more]
        process = self.context.Process(target=_main, args=(words, str(self.folder / f"{name}.log")))
        process.start()
        return process

    def whole(self, name: str, *more: str) -> float:
        """A run to its end, which must be good; returns its seconds."""
        begun = time.perf_counter()
        process = self.start(name, *more)
        process.join()
        assert process.exitcode == 0, self.log(name)
        return time.perf_counter() - begun

    def killed(self, name: str, seconds: float) -> None:
        """A run that is killed after ``seconds``, unless it has ended by then."""
        process = self.start(name)
        process.join(seconds)
        process.kill()
        process.join()

    def log(self, name: str) -> str:
        """All that the runs of that name printed."""
        return (self.folder / f"{name}.log").read_text()


def _main(words: list[str], log: str) -> None:
    from cgbench.cli.app import main

    # What is killed is what writes, not what measures.
    take_few_blocks()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    torch.set_num_threads(1)
    sys.argv = ["cgbench", *words]
    main()
