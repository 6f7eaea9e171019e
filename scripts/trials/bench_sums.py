"""Sums over the ranks of a tensor parallel run: cgbench's kernels beside NCCL and torch's own.

    python scripts/trials/bench_sums.py --tp 2 --output results/FOLDER/sums.md

Every way sums the same bfloat16 numbers, many times in one CUDA graph, all ranks together. Sizes
are those of a decode step: rows (requests x (k + 1)) times a hidden size of 4096. ``symmetric
memory`` is torch's ``symm_mem.one_shot_all_reduce_copy``. Sums that cgbench makes by words are
measured by pieces too. Needs as many CUDA devices as ranks.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from cgbench.errors import CgbenchError, DeviceError
from cgbench.kernels import triton_exchange
from cgbench.parallel.inboxes import mapped_memory, opened_inboxes, why_no_inboxes
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import Ranks, barrier
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds

HIDDEN_SIZE = 4096
ROWS = (1, 4, 8, 16, 32, 64, 96, 128, 256, 320, 512, 1024)
CALLS = 40
REPLAYS = 20

Sum = Callable[[Tensor], object]


def ways(part: Tensor, inboxes: triton_exchange.Inboxes) -> Iterator[tuple[str, Sum]]:
    """How ``part`` can be summed, by name."""
    yield "NCCL", dist.all_reduce
    yield "symmetric memory", torchs_own(part)
    if not inboxes.take(part):
        return
    if inboxes.by_words(part):
        yield "cgbench, words", inboxes.add_up
    yield "cgbench, pieces", inboxes._replace(few_bytes=0).add_up


def torchs_own(part: Tensor) -> Sum:
    buffer, _ = mapped_memory(part.numel(), part.dtype)
    world = dist.group.WORLD
    assert world is not None, "ranks are started first"
    flat, out = part.view(-1), torch.empty_like(part.view(-1))
    call = torch.ops.symm_mem.one_shot_all_reduce_copy_out
    return lambda _: call(buffer, flat, "sum", world.group_name, out)


@torch.inference_mode()
def measure() -> list[tuple[str, int, float]]:
    """Name, rows and seconds a sum. Raises ``DeviceError`` where ranks have no inboxes."""
    inboxes, results = opened_inboxes(), []
    if inboxes is None:
        raise DeviceError(f"ranks do not reach each other's memory: {why_no_inboxes()}")
    for rows in ROWS:
        part = torch.zeros(rows, HIDDEN_SIZE, dtype=torch.bfloat16, device="cuda")
        for name, way in ways(part, inboxes):
            barrier(f"{rows} rows by {name}")
            results.append((name, rows, seconds(way, part)))
    return results


def seconds(way: Sum, part: Tensor) -> float:
    """Seconds of one sum."""
    return graph_seconds(lambda: [way(part) for _ in range(CALLS)], REPLAYS) / CALLS


def table(*, ranks: Ranks) -> str:
    """What rank 0 prints."""
    results, facts = measure(), environment()
    lines = [
        f"Sums of bfloat16 over {ranks.size} ranks, {facts['gpu']}, torch {facts['torch']}.",
        "",
        "| rows of 4096 | kB | way | us |",
        "|---:|---:|---|---:|",
        *(
            f"| {rows} | {rows * HIDDEN_SIZE * 2 / 1e3:.0f} | {name} | {taken * 1e6:.1f} |"
            for name, rows, taken in results
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tp", type=int, default=2, help="ranks, a GPU each")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    try:
        text = run_on_ranks(arguments.tp, "cuda", table)
    except CgbenchError as error:
        raise SystemExit(f"error: {error}") from None
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
