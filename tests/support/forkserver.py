"""The one server that tests fork their processes from, with what those import already imported.

Python keeps one fork server a process, and what it imports is settled when it starts: everything
that any test starts processes for is named here.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

import pytest

PRELOADED = (
    "cgbench.cli.console",
    "cgbench.door.run_writer",
    "cgbench.measure.setup",
    "pyarrow.parquet",
    "pydantic",
    "transformers.models.qwen2.modeling_qwen2",
    "tests.support.drafter_jobs",
    "tests.support.hybrid_jobs",
    "tests.support.killing",
    "tests.support.quick_limits",
    "tests.support.rank_faults",
    "tests.support.rank_jobs",
)


def fork_context() -> ForkServerContext:
    """A context whose processes start in milliseconds; nothing has run in the server.

    It is started here: whoever asks for another list of modules afterwards gets this one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    forkserver.ensure_running()
    return context


@contextmanager
def forked_ranks() -> Iterator[None]:
    """Ranks are forked from the server meanwhile: spawned, each would import everything anew."""
    fork_context()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cgbench.parallel.launch.START_METHOD", "forkserver")
        yield
