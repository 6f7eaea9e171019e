"""Two ranks that divide a reduced draft vocabulary draft what one process does."""

import json
from pathlib import Path
from typing import Any

import pytest

from cgbench.models.heads.families import MIMO_V2
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from tests.support import rank_jobs
from tests.support.tiny import make_checkpoint

DENSE, SHARED = "mimo", "shared"
KEPT = [1, 2, 4, 7]
NAMES = (DENSE, rank_jobs.OWN, SHARED, rank_jobs.TIED.name)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """The head's rows are of the target's matrix, of its own, or shared by two modules."""
    root = tmp_path_factory.mktemp("models")
    folders = rank_jobs.make_folders(root, (DENSE, rank_jobs.OWN))
    folders[SHARED] = make_checkpoint(
        root / SHARED, DENSE, family=MIMO_V2, num_modules=2, vocab_size=rank_jobs.VOCABULARY
    )
    file = root / "ranks.json"
    file.write_text(json.dumps([7, 2, 1, 4, 0, 3]))
    return folders, file


@pytest.fixture(scope="module")
def alone(job: tuple[dict[str, Path], Path]) -> dict[str, Any]:
    return rank_jobs.tell_reduced(*job, ranks=ALONE)[0]


@pytest.fixture(scope="module")
def ranks(job: tuple[dict[str, Path], Path]) -> list[dict[str, Any]]:
    (told,) = run_on_ranks(2, "cpu", rank_jobs.in_turn, (rank_jobs.tell_reduced, job))
    return told  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_ranks_draft_as_one_process_does(
    name: str, alone: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    """Greedy, and of one head sampled, and drafts that are greedy under sampling, k 1 and 3, ragged
    batches."""
    whole, *_ = alone[name]
    for of_rank in ranks:
        told, *_ = of_rank[name]
        assert told.tokens == whole.tokens and told.drafts == whole.drafts
        assert told.accepted == whole.accepted and told.fingerprint == whole.fingerprint
    kept = set(range(4)) if name == rank_jobs.TIED.name else set(KEPT)
    made = {token for steps in whole.drafts.values() for rows in steps for r in rows for token in r}
    assert made and made <= kept


@pytest.mark.parametrize("name", NAMES)
def test_each_rank_holds_half_of_the_rows(
    name: str, alone: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    _, ids, num_rows, product = alone[name]
    assert num_rows == len(ids) == 4
    for of_rank in ranks:
        _, its_ids, its_rows, its_product = of_rank[name]
        assert (its_ids, its_rows) == (ids, 2)
        assert 2 * its_product.num_elements == product.num_elements
