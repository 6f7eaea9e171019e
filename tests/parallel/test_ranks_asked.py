"""How many ranks a command has, by its flag and by the environment."""

import pytest

from cgbench.errors import BadInputError
from cgbench.parallel.launch import ranks_asked


@pytest.mark.parametrize("size", ["two", "", "-1", "0", "1.5"])
def test_an_environment_that_names_no_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(BadInputError, match="WORLD_SIZE"):
        ranks_asked(None)


def test_ranks_that_were_started_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks_asked(None) == ranks_asked(2) == 2
