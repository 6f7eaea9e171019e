"""Two groups of ranks that are told they are two machines, as torchrun tells them."""

import json
import os
import socket
import subprocess
from pathlib import Path

from tests.support.command import FAST, cgbench
from tests.support.forkserver import PRELOADED
from tests.support.quick_python import quick_python

NUM_MACHINES, RANKS_A_MACHINE = 2, 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def of_rank(rank: int, port: int) -> dict[str, str]:
    """The environment of a rank, which shares its number on the machine with another one."""
    numbers = {
        "RANK": rank,
        "WORLD_SIZE": NUM_MACHINES * RANKS_A_MACHINE,
        "LOCAL_RANK": rank % RANKS_A_MACHINE,
        "LOCAL_WORLD_SIZE": RANKS_A_MACHINE,
        "GROUP_RANK": rank // RANKS_A_MACHINE,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    return os.environ | {"MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in numbers.items()}


def test_ranks_of_two_machines_decode_one_s_tokens_and_exchange_by_torch(tmp_path: Path) -> None:
    python, port = quick_python(*PRELOADED), free_port()
    short = ["--batch-sizes", "2", "--iterations", "1", "--max-new-tokens", "4"]
    flags = ["default", *FAST, *short, "--spec-tokens", "1", "--dtype", "float32", "--output"]
    ranks = [
        subprocess.Popen(
            [python, "-m", "cgbench", "run", *flags, str(tmp_path / "apart")],
            env=of_rank(rank, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_MACHINES * RANKS_A_MACHINE)
    ]
    ended = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), ended
    assert [bool(out) for out, _ in ended] == [True, False, False, False]
    assert cgbench("run", *flags, tmp_path / "alone").code == 0

    records = [
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("apart", "alone")
    ]
    tensor_parallel = records[0]["model"]["tensor_parallel"]
    assert tensor_parallel["few_numbers"] == "gloo: ranks are on several machines"
    tables = [
        (tmp_path / name / "latency.csv").read_text().splitlines() for name in ("apart", "alone")
    ]
    column = tables[0][0].split(",").index("tokens_sha256")
    tokens = [[line.split(",")[column] for line in table[1:]] for table in tables]
    assert tokens[0] == tokens[1] and all(tokens[0])
