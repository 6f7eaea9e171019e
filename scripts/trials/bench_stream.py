"""Read weights through a ring of bulk copies and do nothing else: what any kernel could reach.

    python scripts/trials/bench_stream.py --output results/FOLDER/stream.md

The weights are gate and up of a 7B model (MiMo), 180 MB, 12 times over. They are read in one
launch, and in one launch each. ``side by side``: a program's boxes follow each other. ``in turns``:
the programs' boxes do. ``boxes apart``: a box is many pieces of a row-major matrix. ``boxes
whole``: the matrix is stored box by box. Needs a CUDA device of Hopper.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from cgbench.floor.device_limits import read_bandwidth
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds, tell
from persistent_layer.gluon_stream import Ring, stream

OUTPUTS, INPUTS, COPIES = 22016, 4096, 12
COLUMNS = 64
TIMED_REPLAYS = 5
SLOT_BYTES = {64: 8192, 128: 16384}
RINGS = ((1, 196608), (1, 65536), (2, 98304))
"""Programs a multiprocessor, and the bytes of each one's ring."""


def lines(bandwidth: float) -> Iterator[str]:
    """Markdown, a line a way to ask."""
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    weights = torch.randn(COPIES * OUTPUTS, INPUTS, device="cuda", dtype=torch.bfloat16)
    for (rows, size), is_whole, takes_turns, (programs, nbytes) in product(
        SLOT_BYTES.items(), (False, True), (False, True), RINGS
    ):
        ring = Ring(rows, COLUMNS, nbytes // size, programs * multiprocessors, takes_turns)
        stored = weights.view(-1, COLUMNS) if is_whole else weights
        rates = [
            weights.nbytes / graph_seconds(partial(each_read, parts, ring), TIMED_REPLAYS)
            for parts in ([stored], stored.chunk(COPIES))
        ]
        cells = (
            f"{rows} x {COLUMNS}",
            "whole" if is_whole else "apart",
            "in turns" if takes_turns else "side by side",
            ring.slots,
            programs,
            *(f"{rate / 1e12:.2f} | {rate / bandwidth:.0%}" for rate in rates),
        )
        yield f"| {' | '.join(map(str, cells))} |"


def each_read(parts: Sequence[Tensor], ring: Ring) -> None:
    for part in parts:
        stream(part, ring)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        raise SystemExit("no CUDA device of Hopper")
    bandwidth, facts = read_bandwidth(torch.device("cuda")), environment()
    text = [
        f"Weights of {OUTPUTS} x {INPUTS} in bfloat16, {COPIES} times, on {facts['gpu']}, torch "
        f"{facts['torch']}. Read bandwidth {bandwidth / 1e12:.2f} TB/s, measured in this run.",
        "",
        "| box | boxes | a program's boxes | slots | programs a multiprocessor | all at once "
        "[TB/s] | of read bandwidth | a launch each [TB/s] | of read bandwidth |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    tell(lines(bandwidth), text, arguments.output)


if __name__ == "__main__":
    main()
