"""Ranks that end badly. What only one function wants it imports, for every rank pays for it."""

import ctypes
import os
import signal
import time
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

from cgbench.errors import BadInputError
from cgbench.parallel.ranks import Ranks, barrier, gathered, joined


def handed(*, ranks: Ranks) -> list[Ranks]:
    """What every rank is handed."""
    assert ranks == joined()
    return gathered(ranks)


def die(how: str, *, ranks: Ranks) -> None:
    """Rank 1 goes, while rank 0 waits for it in a collective."""
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    if ranks.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise BadInputError("--seed: rank 1 has no luck") if how == "refuses" else ValueError("odd")
    torch.distributed.all_reduce(total)


def signal_the_launcher(launcher: int, number: int, *, ranks: Ranks) -> None:
    """Rank 0 signals who started it, and all wait for what comes of it."""
    barrier("the signal")
    if ranks.rank == 0:
        os.kill(launcher, number)
    wait_in_c()


def wait_in_c() -> None:
    """For ever, and deaf to Python's signal handlers: as one waits for a device."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def never_come(timeout_s: float, *, ranks: Ranks) -> None:
    """Rank 1 hangs where rank 0 waits with a time limit."""
    if ranks.rank == 1:
        time.sleep(600)
    barrier("the capture of nothing", timeout_s)


class NoMemory:
    """A capturer whose rank 1 has no memory left: the others reach the barrier after it."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def capture(self, *args: object) -> None:
        if self.ranks.rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        barrier("the first replay")


def run_out_of_memory_in_capture(*, ranks: Ranks) -> None:
    from cgbench.engine import graphs
    from cgbench.planning import Bucket
    from cgbench.words import Scope

    state = mock.Mock(spec_tokens=3)
    graphs._capture_bucket(mock.Mock(), state, Bucket(8, 32), Scope.ITERATION, NoMemory(ranks))  # type: ignore[arg-type]


def run_shortly(*args: Any, ranks: Ranks, **kwargs: Any) -> object:
    """``cgbench run``, of as few blocks as tests in one process take."""
    from cgbench.door import run
    from cgbench.measure import group, rounds, stop_rule
    from tests.support.fixtures import FEW_BLOCKS

    with ExitStack() as patches:
        for module in (stop_rule, rounds, group):
            patches.enter_context(mock.patch.object(module, "MIN_BLOCKS", FEW_BLOCKS))
        patches.enter_context(mock.patch.object(group, "STAGE_ITERATIONS", FEW_BLOCKS))
        return run.measure(*args, ranks=ranks, **kwargs)


def run_and_die(*args: Any, ranks: Ranks, **kwargs: Any) -> object:
    """``run_shortly``, whose rank 1 dies when the second batch size is measured."""
    from cgbench.measure import group

    measure_group = group.measure_group

    def measured(session: Any, batch_size: int, on_step: Any) -> Any:
        if batch_size == 2 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return measure_group(session, batch_size, on_step)

    with mock.patch.object(group, "measure_group", measured):
        return run_shortly(*args, ranks=ranks, **kwargs)
