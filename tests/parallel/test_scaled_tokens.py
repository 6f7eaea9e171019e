"""FP8 weights that two ranks share: a block that is cut keeps its scale on both."""

from pathlib import Path

from cgbench.models.heads.families import DEEPSEEK, MIMO
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from tests.support import rank_jobs
from tests.support.fp8 import make_fp8_checkpoint


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    """88 columns in two are 44: two blocks of 16 and most of a third, as 1408 are 704."""
    shape = {"intermediate_size": 88, "moe_intermediate_size": 24}
    kinds = {"mimo": MIMO, "glm4_moe": DEEPSEEK, "deepseek_v3": DEEPSEEK}
    folders = {
        kind: make_fp8_checkpoint(tmp_path / kind, kind, family, **shape)[0]
        for kind, family in kinds.items()
    }
    (alone,) = rank_jobs.tell_scaled(folders, ranks=ALONE)
    first, second = run_on_ranks(2, "cpu", rank_jobs.tell_scaled, folders)
    assert first == second == alone
