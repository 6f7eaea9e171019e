"""Linear layers of few rows: the streamed kernel beside cuBLAS, against the bytes of the weights.

    python scripts/trials/bench_linear.py --output results/FOLDER/linear.md
    python scripts/trials/bench_linear.py --rows 4 --tilings all

Every product runs over several weights in turn, captured in one CUDA graph, so that no cache holds
what the next one reads. Beside them runs a trial that cuts all tiles of a product in equal runs
(``persistent_layer/triton_runs.py``). ``--tilings all`` shows the best of many, from which the
kernel's own rule was made. Shapes are a 7B model's (MiMo: q/k/v and gate/up packed,
the head's projection, lm_head). Needs a CUDA device.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.floor.device_limits import read_bandwidth
from cgbench.kernels.triton_linear import MAX_ROWS, Tiling, linear, tiling_of
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds, tell
from persistent_layer.triton_runs import linear_in_runs

SHAPES = {
    "q, k, v": (6144, 4096),
    "o": (4096, 4096),
    "gate, up": (22016, 4096),
    "down": (4096, 11008),
    "head's projection": (4096, 8192),
    "lm_head": (151680, 4096),
}
DISTINCT_BYTES = 800_000_000
REPLAYS = 10

# block_n, block_k, num_warps, num_stages
BLOCKS = (
    *((64, 128, 4, stages) for stages in (2, 3, 4, 5)),
    *((64, 64, 4, stages) for stages in (4, 6)),
    *((32, 128, 4, stages) for stages in (3, 4)),
    (32, 256, 4, 3),
    *((128, 64, 4, stages) for stages in (3, 4)),
    *((128, 128, 8, stages) for stages in (2, 3)),
    (128, 128, 4, 3),
    (64, 256, 4, 3),
    (64, 128, 8, 3),
    (64, 64, 4, 8),
)
SPLITS = (1, 2, 4)
# Programs and stages: as many programs as an H200 has multiprocessors, or more.
RUNS = ((132, 6), (264, 5), (132, 8), (264, 4), (396, 3), (528, 2))
# With fewer programs the device is idle, with more their sums cost more than they gain.
LEAST_PROGRAMS, MOST_SPLIT_PROGRAMS = 90, 800

Product = Callable[[Tensor, Tensor], Tensor]


def candidates(rows: int, outputs: int, *, every: bool) -> Iterator[tuple[str, Product]]:
    """Ways to multiply, by name: cuBLAS, the kernel as its rule has it, and perhaps every other.

    Above ``MAX_ROWS`` the kernel multiplies nothing, and cuBLAS is alone.
    """
    yield "cuBLAS", F.linear
    if rows > MAX_ROWS:
        return
    rule = tiling_of(outputs, rows)
    others = (Tiling(n, k, s, w, g) for (n, k, w, g), s in product(BLOCKS, SPLITS))
    kept = {tiling for tiling in others if every and is_worth_trying(tiling, outputs)}
    for tiling in [rule, *sorted(kept - {rule})]:
        block_n, block_k, splits, warps, stages, *_ = tiling
        cut = f"{splits} split{'s' * (splits > 1)}"
        name = f"{block_n} x {block_k}, {cut}, {warps} warps, {stages} stages"
        yield name + (" (its rule)" if tiling == rule else ""), streamed(tiling)
    for programs, stages in RUNS if every else RUNS[:2]:
        yield f"{programs} equal runs, {stages} stages", in_runs(programs, stages)


def streamed(tiling: Tiling) -> Product:
    """The kernel with that tiling."""
    return lambda x, weight: linear(x, weight, None, tiling=tiling)


def in_runs(programs: int, stages: int) -> Product:
    """The trial kernel of equal runs of tiles."""
    return partial(linear_in_runs, bias=None, programs=programs, num_stages=stages)


def is_worth_trying(tiling: Tiling, outputs: int) -> bool:
    """Whether there are programs enough, and not too many parts to add."""
    programs = -(-outputs // tiling.block_n) * tiling.splits
    return programs >= LEAST_PROGRAMS and (tiling.splits == 1 or programs <= MOST_SPLIT_PROGRAMS)


@torch.inference_mode()
def seconds(way: Product, x: Tensor, weights: list[Tensor]) -> float:
    """Seconds of one product."""
    return graph_seconds(lambda: [way(x, weight) for weight in weights], REPLAYS) / len(weights)


def lines(rows: int, name: str, bandwidth: float, *, every: bool) -> Iterator[str]:
    """Markdown, a line a way."""
    outputs, inputs = SHAPES[name]
    count = max(1, DISTINCT_BYTES // (outputs * inputs * 2))
    draw = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    weights = [draw(outputs, inputs) for _ in range(count)]
    x = draw(rows, inputs)
    for way, multiply in candidates(rows, outputs, every=every):
        taken = seconds(multiply, x, weights)
        rate = weights[0].nbytes / taken
        cells = f"{rows} | {name} | {way} | {taken * 1e6:.1f} | {rate / 1e12:.2f}"
        yield f"| {cells} | {rate / bandwidth:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="4,32", help="rows of the other operand")
    parser.add_argument("--tilings", choices=("rule", "all"), default="rule")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    bandwidth, facts = read_bandwidth(torch.device("cuda")), environment()
    text = [
        f"Products in bfloat16 on {facts['gpu']}, torch {facts['torch']}. Read bandwidth "
        f"{bandwidth / 1e12:.2f} TB/s, measured in this run.",
        "",
        "| rows | weights | way | us | TB/s | of read bandwidth |",
        "|---:|---|---|---:|---:|---:|",
    ]
    for rows, name in product((int(word) for word in arguments.rows.split(",")), SHAPES):
        found = lines(rows, name, bandwidth, every=arguments.tilings == "all")
        tell(found, text, arguments.output)


if __name__ == "__main__":
    main()
