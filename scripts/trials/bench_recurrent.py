"""A gated delta net's layer at few rows: packed products beside four, and the kernel by its parts.

    python scripts/trials/bench_recurrent.py --output results/FOLDER/recurrent.md
    python scripts/trials/bench_recurrent.py --shapes qwen3.5-0.8b --batch-sizes 1 --query-lens 4

Every call has weights or state of its own, so that no cache holds what the next one reads. The
kernel is timed by the rows that are pending. ``full`` is a verify that writes the matrices.
``every time`` is one that writes them with one verify's rows pending, as it would without a ring.
``norm apart`` launches one more compiled norm behind the kernel, whose own norm stays in it. A
share is of the bytes that the kernel must move. Needs a CUDA device.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.floor.device_limits import read_bandwidth
from cgbench.kernels import linear as products
from cgbench.kernels.gdn.delta_net import DeltaNet, DeltaRows, LayerState, most_pending
from cgbench.kernels.gdn.delta_rule import delta_rule, gated_norm
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds, tell


class Shape(NamedTuple):
    """A gated delta net's sizes."""

    hidden: int
    key_heads: int
    heads: int
    size: int = 128

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Outputs of the four projections: query, key and value, gate, beta, and time step."""
        values = self.heads * self.size
        return 2 * self.key_heads * self.size + values, values, self.heads, self.heads


SHAPES = {"qwen3.5-0.8b": Shape(1024, 16, 16), "qwen3.5-35b-a3b": Shape(2048, 16, 32)}
TAPS = 4
REPLAYS = 10
COLD_BYTES = 150e6
"""Of different weights or states, so that L2 holds none of them at its next use."""
BEGIN = 1000

Product = Callable[[Tensor, Tensor], Tensor]
LAYER_TYPE = torch.bfloat16


def product_lines(name: str, num_rows: int, device: str) -> Iterator[str]:
    """Markdown, a line a way to multiply."""
    shape = SHAPES[name]
    count = math.ceil(COLD_BYTES / (sum(shape.parts) * shape.hidden * LAYER_TYPE.itemsize))
    draw = partial(torch.randn, device=device, dtype=LAYER_TYPE)
    weights = [draw(sum(shape.parts), shape.hidden) for _ in range(count)]
    x = draw(num_rows, shape.hidden)
    ways: dict[str, Product] = {
        "cuBLAS": F.linear,
        "cgbench": lambda x, weight: products.linear(x, weight, None),
    }
    for way, multiply in ways.items():
        for label, sizes in (("packed", [sum(shape.parts)]), ("four", list(shape.parts))):
            parts = [part for weight in weights for part in weight.split(sizes)]
            taken = graph_seconds(partial(each_product, multiply, x, parts), REPLAYS)
            yield f"| {name} | {num_rows} | {label}, {way} | {taken / count * 1e6:.1f} |"


def each_product(multiply: Product, x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return [multiply(x, weight) for weight in weights]


def net_of(shape: Shape, device: str) -> DeltaNet:
    """A net with random weights."""
    draw = partial(torch.randn, device=device, dtype=LAYER_TYPE)
    return DeltaNet(
        # As a loaded layer has it.
        conv_weight=draw(TAPS, shape.parts[0]).t(),
        conv_bias=None,
        activation="silu",
        a_log=draw(shape.heads),
        dt_bias=draw(shape.heads),
        norm_weight=draw(shape.size),
        norm_epsilon=1e-6,
        num_key_heads=shape.key_heads,
        num_heads=shape.heads,
        key_size=shape.size,
        value_size=shape.size,
    )


def rows_of(shape: Shape, net: DeltaNet, batch_size: int, query_len: int) -> DeltaRows:
    """Random rows, as one packed product leaves them."""
    key, value, group = shape.size, shape.heads * shape.size, shape.heads
    sizes = [shape.key_heads * key] * 2 + [value] * 2 + [group] * 2
    together = torch.randn(batch_size, query_len, sum(sizes)).to(net.conv_weight)
    parts = together.split(sizes, dim=-1)
    return DeltaRows(net, *(part.unflatten(-1, (shape.key_heads, -1)) for part in parts))


def bytes_moved(layer: LayerState, rows: DeltaRows, num_pending: int, *, is_full: bool) -> int:
    """Bytes of state that one call reads and writes."""
    batch_size, query_len = rows.num_tokens
    shape = rows.net.state_shape
    matrix = batch_size * shape.matrix_elements * layer.matrix.itemsize
    kept = batch_size * (num_pending + query_len) * shape.update_bytes
    conv = batch_size * shape.conv_channels * layer.conv.itemsize * (shape.conv_rows + query_len)
    return matrix * (2 if is_full else 1) + kept + conv


def kernel_lines(
    name: str, batch_size: int, query_len: int, bandwidth: float, device: str
) -> Iterator[str]:
    """Markdown, a line a number of pending rows."""
    shape = SHAPES[name]
    net = net_of(shape, device)
    rows = rows_of(shape, net, batch_size, query_len)
    matrix = batch_size * net.state_shape.matrix_elements * torch.float32.itemsize
    make = (net.state_shape, batch_size, query_len, LAYER_TYPE, torch.device(device))
    layers = [LayerState.zeros(*make) for _ in range(max(3, math.ceil(COLD_BYTES / matrix)))]
    for layer in layers:
        for tensor in (layer.matrix, layer.keys, layer.updates, layer.conv):
            tensor.normal_()
        layer.log_decays.fill_(-1.0)
    slots = torch.arange(batch_size, device=device)
    positions = (BEGIN + torch.arange(query_len, device=device)).repeat(batch_size, 1)
    most = most_pending(query_len)
    cases = {
        **{f"{count} pending": (count, most) for count in (0, most // 2 - 2, most - query_len)},
        "full": (most, most),
        "every time": (query_len, query_len),
        "norm apart": (most // 2 - 2, most),
    }
    norm = torch.compile(gated_norm, dynamic=False)
    for label, (num_pending, limit) in cases.items():
        count = torch.full((batch_size,), num_pending, device=device)
        states = [replace(layer, most_pending=limit) for layer in layers]

        def run(
            states: list[LayerState] = states, count: Tensor = count, label: str = label
        ) -> None:
            for state in states:
                out = delta_rule(state, rows, slots, positions, count)
                if label == "norm apart":
                    norm(rows, out)

        taken = graph_seconds(run, REPLAYS) / len(layers)
        is_full = num_pending + query_len > limit
        moved = bytes_moved(layers[0], rows, num_pending, is_full=is_full)
        cells = f"{name} | {batch_size} | {query_len} | {label} | {taken * 1e6:.1f}"
        yield f"| {cells} | {moved / 1e6:.1f} | {moved / taken / bandwidth:.0%} |"


def tables(arguments: argparse.Namespace, device: str) -> Iterator[str]:
    """Both tables, line by line."""
    bandwidth, facts = read_bandwidth(torch.device(device)), environment()
    names, batch_sizes, query_lens = (
        arguments.shapes.split(","),
        [int(word) for word in arguments.batch_sizes.split(",")],
        [int(word) for word in arguments.query_lens.split(",")],
    )
    yield (
        f"Gated delta nets in bfloat16 on {facts['gpu']}, torch {facts['torch']}. Read bandwidth "
        f"{bandwidth / 1e12:.2f} TB/s, measured in this run."
    )
    yield from ("", "| shape | rows | projections | us |", "|---|---:|---|---:|")
    for name in names:
        for num_rows in sorted({b * q for b, q in product(batch_sizes, query_lens)}):
            yield from product_lines(name, num_rows, device)
    head = "| shape | batch | rows each | kernel | us | MB | of read bandwidth |"
    yield from ("", head, "|---|---:|---:|---|---:|---:|---:|")
    for name, batch_size, query_len in product(names, batch_sizes, query_lens):
        yield from kernel_lines(name, batch_size, query_len, bandwidth, device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--batch-sizes", default="1,8,64")
    parser.add_argument("--query-lens", default="1,4", help="rows of a request's verify")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    with torch.inference_mode():
        tell(tables(arguments, "cuda"), [], arguments.output)


if __name__ == "__main__":
    main()
