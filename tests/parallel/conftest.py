"""Every test here starts ranks."""

from collections.abc import Iterator

import pytest

from tests.support.forkserver import forked_ranks


@pytest.fixture(scope="session", autouse=True)
def quick_ranks() -> Iterator[None]:
    with forked_ranks():
        yield
