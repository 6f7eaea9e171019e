"""What ranks measure of themselves: their part of the floor, and when all of them stop."""

from pathlib import Path
from typing import Any

import pytest

from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from tests.support import rank_jobs

KINDS = ("mimo", "glm4_moe", rank_jobs.OWN)
COUNTED = ("mimo divided", "mimo whole", "glm4_moe divided", f"{rank_jobs.OWN} whole")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return rank_jobs.make_folders(tmp_path_factory.mktemp("models"), KINDS, vocab_size=64)


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path]) -> list[Any]:
    """Of all jobs, in one start."""
    jobs = (
        (rank_jobs.count_work, (folders, COUNTED)),
        (rank_jobs.measure_by_other_clocks, (folders["mimo"],)),
        (rank_jobs.audit_with_a_fault_on_rank_1, (folders["mimo"],)),
        (rank_jobs.audit_where_rank_1_reads_other_tokens, (folders["mimo"],)),
    )
    return run_on_ranks(2, "cpu", rank_jobs.in_turn, *jobs)


def test_the_floor_is_of_what_a_rank_holds(folders: dict[str, Path], answers: list[Any]) -> None:
    alone = rank_jobs.count_work(folders, COUNTED, ranks=ALONE)
    shared = answers[0]
    for name, of_ranks in shared.items():
        ((whole, _),) = alone[name]
        for counted, held in of_ranks:
            assert counted == held
            assert counted.target < whole.target and 2 * counted.lm_head == whole.lm_head
            # An output matrix of the head's own is divided as the lm_head is, always.
            divided = name.endswith("divided") or name.startswith(rank_jobs.OWN)
            assert (counted.head < whole.head) == divided


def test_ranks_stop_by_one_clock_and_discard_alike(answers: list[Any]) -> None:
    """By its own clock rank 1 would have ended at the fewest blocks; it alone saw a hot GPU."""
    first, other = answers[1]
    assert first == other
    assert first[0] == 16 and sum(count or 0 for count in first[1]) == 2


def test_what_one_rank_alone_finds_is_found(answers: list[Any]) -> None:
    """Rank 0 goes on where rank 1 has seen enough: neither may wait for the other in vain."""
    first, other = answers[2]
    text = "an iteration wrote to KV slot 0 at position"
    assert first[0] == other[0] == "wrong"
    assert first[1].startswith(f"rank 1: {text}") and other[1].startswith(text)


def test_ranks_that_read_other_tokens_say_so_and_do_not_part(answers: list[Any]) -> None:
    for of_ranks in answers[3].values():
        for verdict, text in of_ranks:
            assert verdict == "wrong" and "rank 1: its tokens are not rank 0's" in text
