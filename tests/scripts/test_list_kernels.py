"""``scripts/trials/list_kernels.py``: what a kernel adds to an iteration whose kernels overlap."""

import argparse

import pytest

from cgbench.words import Scope
from list_kernels import Kernel, added, lines, request_of, short


def test_what_kernels_add_is_the_time_that_passed() -> None:
    """The second waits inside its own time, and the third ends within it."""
    kernels = [Kernel("a", 0, 4), Kernel("b", 1, 6), Kernel("c", 2, 5), Kernel("a", 9, 10)]
    assert list(added(kernels)) == [("a", 4), ("b", 2), ("c", 0), ("a", 4)]


def test_a_table_is_of_one_iteration_and_its_longest_line_comes_first() -> None:
    kernels = [Kernel("a", 0, 2), Kernel("b", 2, 6), Kernel("a", 6, 8), Kernel("b", 8, 12)]
    head, _, _, _, first, second = lines(kernels, 2)
    assert head == "2 kernels an iteration, 6.0 us"
    assert first == "| `b` | 1 | 4.00 | 4.00 | 4.0 | 66.7% |"
    assert second == "| `a` | 1 | 2.00 | 2.00 | 2.0 | 33.3% |"


@pytest.mark.parametrize(
    ("name", "shown"), [("void f<int>(float*)", "f<int>"), ("k" * 80, "k" * 69 + "...")]
)
def test_names_lose_their_arguments(name: str, shown: str) -> None:
    assert short(name) == shown


def test_only_the_sizes_asked_for_are_captured() -> None:
    options = argparse.Namespace(
        model="default", spec_tokens=2, batch_sizes="1,8", context_len=64, compile="off"
    )
    capture = request_of(options).capture
    assert capture.capture_sizes == (1, 8)
    assert capture.scopes == (Scope.ITERATION,)
