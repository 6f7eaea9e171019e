"""Ranks are forked from the tests' server: spawned, each would import everything anew."""

from collections.abc import Iterator

import pytest

from tests.forkserver import fork_context


@pytest.fixture(scope="session", autouse=True)
def forked_ranks() -> Iterator[None]:
    fork_context()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cgbench.parallel.launch.START_METHOD", "forkserver")
        yield
