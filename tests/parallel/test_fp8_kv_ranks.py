"""FP8 keys and values that two ranks share: each keeps its heads, and the scales of those."""

from pathlib import Path

from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from tests.support import rank_jobs
from tests.support.tiny import make_checkpoint


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    """Two KV heads of 8: 16 bytes of values and 8 of scales a head and token."""
    folder = make_checkpoint(tmp_path, "mimo", seed=3)
    [(rows, num_bytes, counted)] = rank_jobs.tell_fp8_kv(folder, ranks=ALONE)
    told = run_on_ranks(2, "cpu", rank_jobs.tell_fp8_kv, folder)
    assert [each[0] for each in told] == [rows, rows]
    assert [2 * each[1] for each in told] == [num_bytes, num_bytes]
    assert counted == {2 * (16 + 8)} and [each[2] for each in told] == [{16 + 8}] * 2
