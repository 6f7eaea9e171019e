"""Ranges of ``cgbench run``: a sparse grid."""

import pytest

from cgbench.cli.values import parse_grid
from cgbench.errors import BadInputError
from tests.support.command import cgbench


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", (3,)),
        ("4,1,2", (1, 2, 4)),
        ("0-8", (0, 1, 2, 4, 8)),
        ("1-64", (1, 2, 4, 8, 16, 32, 64)),
        ("3-20", (3, 4, 8, 16, 20)),
        ("1-4,6", (1, 2, 4, 6)),
    ],
)
def test_a_range_is_its_ends_and_the_powers_of_two_between(
    text: str, found: tuple[int, ...]
) -> None:
    assert parse_grid("--batch-sizes", text) == found


@pytest.mark.parametrize("text", ["8-1", "4-4", "1-", "-", "1-x", "1--4", ""])
def test_what_is_no_range_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(BadInputError, match="--batch-sizes"):
        parse_grid("--batch-sizes", text)


def test_run_refuses_a_falling_range_before_anything_is_loaded() -> None:
    cgbench("run", "--spec-tokens", "8-0").refused(2, "--spec-tokens 8-0", "must rise")
