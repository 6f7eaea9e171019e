"""FP8 weights that two ranks share: a block that is cut keeps its scale on both."""

from pathlib import Path
from typing import Any

import pytest

from cgbench.models.heads.families import DEEPSEEK, MIMO, QWEN
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from cgbench.request.choices import QuantMode
from tests.support import rank_jobs
from tests.support.fp8 import make_fp8_checkpoint

CUT = {"intermediate_size": 88, "moe_intermediate_size": 24}
"""88 columns in two are 44: two blocks of 16 and most of a third, as 1408 are 704."""
ONE_MIXTURE = {"num_hidden_layers": 1, "first_k_dense_replace": 0}
SHAPES = dict.fromkeys(("glm4_moe", "deepseek_v3"), ONE_MIXTURE)
"""MiMo has the dense layers."""
KINDS = {"mimo": MIMO, "glm4_moe": DEEPSEEK, "deepseek_v3": DEEPSEEK, "qwen3_5": QWEN}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("scaled")
    return {
        kind: make_fp8_checkpoint(root / kind, kind, family, seed=3, **CUT, **SHAPES.get(kind, {}))[
            0
        ]
        for kind, family in KINDS.items()
    }


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("uncut")
    shape = CUT | {"intermediate_size": 64}
    return {"mimo": make_fp8_checkpoint(folder, "mimo", MIMO, seed=1, **shape)[0]}


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path], uncut: dict[str, Path]) -> list[Any]:
    """Of all jobs, in one start."""
    jobs = (
        (rank_jobs.tell_scaled, (folders,)),
        (rank_jobs.tell_scaled, (uncut, QuantMode.W8A8)),
        (rank_jobs.audit_w8a8, (folders["glm4_moe"],)),
    )
    return run_on_ranks(2, "cpu", rank_jobs.in_turn, *jobs)


def test_two_ranks_are_one_process(folders: dict[str, Path], answers: list[Any]) -> None:
    (alone,) = rank_jobs.tell_scaled(folders, ranks=ALONE)
    first, second = answers[0]
    assert first == second == alone


def test_two_ranks_quantise_what_they_hold(uncut: dict[str, Path], answers: list[Any]) -> None:
    """Where blocks are whole on each rank, a token's scales are those of one process. Sums over
    ranks are in another order, so a value may become the FP8 number beside: in one request of
    three, at most."""
    (alone,) = rank_jobs.tell_scaled(uncut, QuantMode.W8A8, ranks=ALONE)
    first, second = answers[1]
    assert first == second
    mark, rows = first["mimo"]
    assert mark == alone["mimo"][0]
    unlike = [ours != its for ours, its in zip(rows[:3], alone["mimo"][1][:3], strict=True)]
    assert sum(unlike) <= 1


def test_a_block_that_is_cut_is_quantised_by_its_parts(answers: list[Any]) -> None:
    """44 of 88 columns on each rank: the audit's reference quantises the same parts."""
    assert answers[2] == [("holds", "")] * 2
