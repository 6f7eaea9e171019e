"""What ranks measure of themselves, and when all of them stop."""

from pathlib import Path
from typing import Any

import pytest

from cgbench.parallel.launch import run_on_ranks
from tests.support import rank_jobs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    return rank_jobs.make_folders(root, ("mimo",), vocab_size=64)["mimo"]


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[Any]:
    """Of all jobs, in one start."""
    jobs = (
        (rank_jobs.measure_by_other_clocks, (folder,)),
        (rank_jobs.audit_with_a_fault_on_rank_1, (folder,)),
        (rank_jobs.audit_where_rank_1_reads_other_tokens, (folder,)),
    )
    return run_on_ranks(2, "cpu", rank_jobs.in_turn, *jobs)


def test_ranks_stop_by_one_clock_and_discard_alike(answers: list[Any]) -> None:
    """By its own clock rank 1 would have ended at the fewest blocks; it alone saw a hot GPU."""
    first, other = answers[0]
    assert first == other
    assert first[0] == 16 and sum(count or 0 for count in first[1]) == 2


def test_what_one_rank_alone_finds_is_found(answers: list[Any]) -> None:
    """Rank 0 goes on where rank 1 has seen enough: neither may wait for the other in vain."""
    first, other = answers[1]
    text = "an iteration wrote to KV slot 0 at position"
    assert first[0] == other[0] == "wrong"
    assert first[1].startswith(f"rank 1: {text}") and other[1].startswith(text)


def test_ranks_that_read_other_tokens_say_so_and_do_not_part(answers: list[Any]) -> None:
    for of_ranks in answers[2].values():
        for verdict, text in of_ranks:
            assert verdict == "wrong" and "rank 1: its tokens are not rank 0's" in text
