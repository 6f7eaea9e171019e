"""Gate, up and down of several layers in one resident kernel, beside one kernel a product.

    python scripts/trials/bench_persistent.py --output results/FOLDER/persistent.md
    python scripts/trials/bench_persistent.py --layers 1,8 --rows 4,8 --slots 8,12

It answers whether a persistent layer pays: how near to the bytes of its weights two products come
if their weights are one unbroken stream (see ``persistent_layer/gluon_mlp.py``). Each way runs in
one CUDA graph, and no cache holds what the next replay reads. ``ring alone`` streams the same
weights and multiplies nothing. Every result is compared with torch's, and with itself over
``--replays`` replays. Shapes are a 7B model's (MiMo). Needs a CUDA device of Hopper.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.floor.device_limits import read_bandwidth
from cgbench.kernels.triton_linear import linear
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds, tell
from persistent_layer.gluon_mlp import FAULT, Buffers, buffers_of, mlps
from persistent_layer.triton_runs import linear_in_runs

HIDDEN, INNER = 4096, 11008
# A layer's weights are many times L2, and the first layer's have left it when the last's are read.
LEAST_BYTES = 800_000_000
TIMED_REPLAYS = 20
LEAST_ROWS = 8
TOLERANCE = 0.03


class Weights:
    """Weights of ``layers`` MLPs, stacked."""

    def __init__(self, layers: int) -> None:
        def draw(outputs: int, inputs: int) -> Tensor:
            drawn = torch.randn(layers, outputs, inputs, device="cuda", dtype=torch.bfloat16)
            return drawn.mul_(inputs**-0.5)

        self.gate_up, self.down = draw(2 * INNER, HIDDEN), draw(HIDDEN, INNER)

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


def by_kernels(x: Tensor, weights: Weights) -> Tensor:
    """What a compiled layer runs: two streamed products a layer."""
    for gate_up, down in zip(weights.gate_up, weights.down, strict=True):
        h = linear(x, gate_up, None, is_gated=True)
        x = linear(h, down, None, residual=x)
    return x


def by_runs(x: Tensor, weights: Weights, programs: int) -> Tensor:
    """Two products a layer, each in equal runs of tiles."""
    for gate_up, down in zip(weights.gate_up, weights.down, strict=True):
        h = linear_in_runs(x, gate_up, None, programs=programs, is_gated=True)
        x = linear_in_runs(h, down, None, programs=programs, residual=x)
    return x


def by_torch(x: Tensor, weights: Weights) -> Tensor:
    """The definition: torch's own operations, rounded where they round."""
    for gate_up, down in zip(weights.gate_up, weights.down, strict=True):
        gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, down)
    return x


def persistent(
    x: Tensor, weights: Weights, slots: int, *, multiplies: bool = True
) -> tuple[Callable[[], None], Buffers]:
    """A launch of the resident kernel, and the buffers that it reads ``x`` from."""
    num_rows = max(LEAST_ROWS, 1 << (len(x) - 1).bit_length())
    layers = len(weights.down)
    buffers = buffers_of(layers, num_rows, HIDDEN, INNER, weights.down)
    buffers.x[0, : len(x)] = x
    programs = torch.cuda.get_device_properties(0).multi_processor_count

    def run() -> None:
        mlps(
            buffers,
            weights.gate_up,
            weights.down,
            programs=programs,
            slots=slots,
            multiplies=multiplies,
        )

    return run, buffers


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).float().norm() / expected.float().norm())


def is_right(buffers: Buffers, x: Tensor, expected: Tensor, run: Callable[[], None]) -> str:
    """Compare with torch's answer, and with the first answer after 200 more launches."""
    run()
    torch.cuda.synchronize()
    if faults := int(buffers.counters[FAULT.value]):
        return f"{faults} polls did not end"
    first = buffers.x[-1].clone()
    error = relative_error(first[: len(x)], expected)
    for _ in range(200):
        run()
    same = torch.equal(first, buffers.x[-1])
    verdict = "right" if error < TOLERANCE else "WRONG"
    return f"{verdict}, off by {error:.1e}, {'the same' if same else 'NOT the same'} 200 times"


@torch.inference_mode()
def lines(layers: int, rows: int, all_slots: list[int], bandwidth: float) -> Iterator[str]:
    """Markdown, a line a way, as it was measured."""
    weights = Weights(layers)
    others = [Weights(layers) for _ in range(max(LEAST_BYTES // weights.nbytes, 1))]
    x = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
    expected = by_torch(x, weights)

    def line(way: str, seconds: float, note: str) -> str:
        pair, rate = seconds / layers, weights.nbytes / seconds
        cells = f"{layers} | {rows} | {way} | {pair * 1e6:.1f} | {rate / 1e12:.2f}"
        return f"| {cells} | {rate / bandwidth:.0%} | {note} |"

    def timed(runs: Sequence[Callable[[], object]]) -> float:
        return graph_seconds(lambda: [run() for run in runs], TIMED_REPLAYS) / len(runs)

    ways: dict[str, Callable[[Weights], Tensor]] = {
        "a kernel a product": lambda each: by_kernels(x, each),
        "the same, 132 equal runs": lambda each: by_runs(x, each, 132),
        "the same, 264 equal runs": lambda each: by_runs(x, each, 264),
    }
    for way, compute in ways.items():
        found = compute(weights)
        off = f"off by {relative_error(found, expected):.1e}"
        yield line(way, timed([partial(compute, each) for each in others]), off)
    for slots, multiplies in product(all_slots, (True, False)):
        way = f"persistent, {slots} slots" if multiplies else f"ring alone, {slots} slots"
        try:
            run, buffers = persistent(x, weights, slots, multiplies=multiplies)
            note = is_right(buffers, x, expected, run) if multiplies else ""
            runs = [persistent(x, each, slots, multiplies=multiplies)[0] for each in others]
            yield line(way, timed(runs), note)
        except Exception as error:
            yield f"| {layers} | {rows} | {way} | | | | {type(error).__name__}: {error} |"


def numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=numbers, default=[1, 8], help="MLPs in one launch")
    parser.add_argument("--rows", type=numbers, default=[4], help="rows of the other operand")
    parser.add_argument("--slots", type=numbers, default=[8, 12], help="slots of the ring")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        raise SystemExit("no CUDA device of Hopper")
    bandwidth, facts = read_bandwidth(torch.device("cuda")), environment()
    text = [
        f"Gate, up and down of {HIDDEN} x {INNER} in bfloat16 on {facts['gpu']}, torch "
        f"{facts['torch']}. Read bandwidth {bandwidth / 1e12:.2f} TB/s, measured in this run.",
        "",
        "| layers a launch | rows | way | us a layer | TB/s | of read bandwidth | answer |",
        "|---:|---:|---|---:|---:|---:|---|",
    ]
    for layers, rows in product(arguments.layers, arguments.rows):
        tell(lines(layers, rows, arguments.slots, bandwidth), text, arguments.output)


if __name__ == "__main__":
    main()
