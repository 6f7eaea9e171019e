"""FP8 weights that two ranks share: a block that is cut keeps its scale on both."""

from pathlib import Path

from cgbench.models.heads.families import DEEPSEEK, MIMO, QWEN
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from cgbench.request.choices import QuantMode
from tests.support import rank_jobs
from tests.support.fp8 import make_fp8_checkpoint


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    """88 columns in two are 44: two blocks of 16 and most of a third, as 1408 are 704."""
    shape = {"intermediate_size": 88, "moe_intermediate_size": 24}
    kinds = {"mimo": MIMO, "glm4_moe": DEEPSEEK, "deepseek_v3": DEEPSEEK, "qwen3_5": QWEN}
    folders = {
        kind: make_fp8_checkpoint(tmp_path / kind, kind, family, **shape)[0]
        for kind, family in kinds.items()
    }
    (alone,) = rank_jobs.tell_scaled(folders, ranks=ALONE)
    first, second = run_on_ranks(2, "cpu", rank_jobs.tell_scaled, folders)
    assert first == second == alone


def test_two_ranks_quantise_what_they_hold(tmp_path: Path) -> None:
    """Where blocks are whole on each rank, a token's scales are those of one process. Sums over
    ranks are in another order, so a value may become the FP8 number beside: in one request of
    three, at most."""
    folder, _ = make_fp8_checkpoint(tmp_path, "mimo", MIMO, seed=1, intermediate_size=64)
    folders = {"mimo": folder}
    (alone,) = rank_jobs.tell_scaled(folders, QuantMode.W8A8, ranks=ALONE)
    first, second = run_on_ranks(2, "cpu", rank_jobs.tell_scaled, folders, QuantMode.W8A8)
    assert first == second
    mark, rows = first["mimo"]
    assert mark == alone["mimo"][0]
    unlike = [ours != its for ours, its in zip(rows[:3], alone["mimo"][1][:3], strict=True)]
    assert sum(unlike) <= 1


def test_a_block_that_is_cut_is_quantised_by_its_parts(tmp_path: Path) -> None:
    """44 of 88 columns on each rank: the audit's reference quantises the same parts."""
    shape = {"intermediate_size": 88, "moe_intermediate_size": 24}
    folder, _ = make_fp8_checkpoint(tmp_path, "glm4_moe", DEEPSEEK, seed=3, **shape)
    told = run_on_ranks(2, "cpu", rank_jobs.audit_w8a8, folder)
    assert told == [("holds", "")] * 2
