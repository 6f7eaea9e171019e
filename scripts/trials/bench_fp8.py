"""Products of FP8 weights: the streamed kernel beside bfloat16's, against the bytes of the weights.

    python scripts/trials/bench_fp8.py --output results/FOLDER/fp8.md
    python scripts/trials/bench_fp8.py --rows 4 --tilings all

Every product runs over several weights in turn, captured in one CUDA graph, so that no cache holds
what the next one reads. "values" makes the weights' values in bfloat16 and leaves the product to
cuBLAS. "pairs" multiplies the rows as sums of two FP8 numbers. "bfloat16" is the product of plain
weights of that shape, which FP8 must beat. "error" is a product's distance from the one in float64,
over that one's norm, in the worst row. ``--experts`` times a mixture's experts too. Needs a CUDA
device.

    python scripts/trials/bench_fp8.py --w8a8 --rows 4,32,256,2048 --experts

With ``--w8a8`` the rows are quantised as well. "quantise" is that kernel alone, which every time of
W8A8 includes. "library" is the same rows through ``torch._scaled_mm`` with scales of blocks, where
this torch and device have it: their quantisation is left out.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from cgbench.floor.device_limits import read_bandwidth
from cgbench.kernels.fp8.block_scales import dequantised, quantised, row_blocks_of
from cgbench.kernels.fp8.library_products import multiply_pairs
from cgbench.kernels.fp8.scaled_products import scaled_linear
from cgbench.kernels.fp8.triton_tokens import quantised_tokens
from cgbench.kernels.linear import linear as plain_linear
from cgbench.kernels.moe.expert_products import Choice, Experts, ExpertScales
from cgbench.kernels.moe.triton_experts import apply
from cgbench.kernels.triton_linear import (
    MAX_SCALED_ROWS,
    Scales,
    Tiling,
    linear,
    quantised_tiling_of,
    scaled_tiling_of,
)
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds, tell

SHAPES = {
    "q, k, v": (6144, 4096),
    "o": (4096, 4096),
    "gate, up": (22016, 4096),
    "down": (4096, 11008),
    "GLM-4.5-Air q, k, v": (14336, 4096),
    "DeepSeek-V3 o": (7168, 16384),
}
# experts, chosen, hidden, intermediate
MIXTURES = {
    "Qwen3.5-35B-A3B": (256, 8, 2048, 512),
    "GLM-4.5-Air": (128, 8, 4096, 1408),
}
EXPERT_TOKENS = (1, 4, 16, 64, 256)
DISTINCT_BYTES = 800_000_000
REPLAYS = 10
BLOCK = 128

# block_n, block_k, num_warps, num_stages
BLOCKS = (
    *((64, 128, 2, stages) for stages in (3, 4, 6)),
    *((64, 128, 4, stages) for stages in (3, 4, 6)),
    *((32, 128, 2, stages) for stages in (4, 6, 8)),
    *((128, 128, 4, stages) for stages in (3, 4)),
    (32, 128, 1, 4),
    (64, 128, 1, 3),
    (128, 128, 2, 3),
    (128, 128, 8, 3),
)
QUANTISED_BLOCKS = (
    *((64, 128, 4, stages) for stages in (3, 4, 5, 6, 7)),
    *((128, 128, 4, stages) for stages in (3, 4)),
    *((128, 128, 8, stages) for stages in (2, 3, 4)),
    *((256, 128, 8, stages) for stages in (2, 3)),
    (32, 128, 2, 4),
)
# The same for rows in float16, and rows a tile.
HALF_BLOCKS = (
    *((64, 128, warps, stages, 64) for warps in (2, 4) for stages in (3, 4)),
    *((64, 128, 4, stages, 128) for stages in (3, 4)),
    *((128, 128, 8, stages, rows) for stages in (3, 4) for rows in (64, 128)),
)
SPLITS = (1, 2, 4, 8)
# With fewer programs the device is idle, with more their sums cost more than they gain.
LEAST_PROGRAMS, MOST_SPLIT_PROGRAMS = 90, 1200
LEAST_HALF_ROWS = 8
"""With fewer rows a product is bound by its bytes, and not by conversions."""

T = TypeVar("T")
Weight = tuple[Tensor, Scales]
Way = Callable[[Tensor, Weight], Tensor]


def quantised_ways(rows: int, outputs: int, *, every: bool) -> Iterator[tuple[str, Way]]:
    """Ways to multiply quantised rows, by name."""
    yield "quantise", lambda x, weight: quantised_tokens(x, weight[1].scale.shape[1]).stored
    yield "library", _by_library()
    rule = quantised_tiling_of(rows, outputs)
    others = (Tiling(n, k, s, w, g) for (n, k, w, g), s in product(QUANTISED_BLOCKS, SPLITS))
    kept = {tiling for tiling in others if every and is_worth_trying(tiling, outputs)}
    for tiling in [rule, *sorted(kept - {rule})]:
        yield _tiling_words(tiling, rule), streamed(tiling)


def _by_library() -> Way:
    """The library's product of rows whose scales lie as it wants them, made once and not timed."""
    made: list[tuple[Tensor, Tensor]] = []

    def multiply(x: Tensor, weight: Weight) -> Tensor:
        stored, its = weight
        if not made:
            rows = quantised_tokens(x, its.scale.shape[1])
            made.append((rows.stored, rows.scales.t().contiguous().t()))
        scales = made[0][1], its.scale.t()
        return torch._scaled_mm(made[0][0], stored.t(), *scales, out_dtype=torch.bfloat16)

    return multiply


def ways(rows: int, outputs: int, *, every: bool) -> Iterator[tuple[str, Way]]:
    """Ways to multiply, by name: by values, the kernel as its rule has it, and perhaps others."""
    yield "values", lambda x, weight: scaled_linear(x, weight[0], None, *weight[1])
    yield "pairs", by_pairs
    if every and rows > LEAST_HALF_ROWS:
        for (n, k, warps, stages, m), splits in product(HALF_BLOCKS, SPLITS):
            tiling = Tiling(n, k, splits, warps, stages, m, in_float16=True)
            if m < 2 * rows and is_worth_trying(tiling, outputs):
                yield f"{_tiling_words(tiling)}, {m} rows", streamed(tiling)
    if rows > MAX_SCALED_ROWS:
        return
    rule = scaled_tiling_of(rows, outputs)
    others = (Tiling(n, k, s, w, g) for (n, k, w, g), s in product(BLOCKS, SPLITS))
    kept = {tiling for tiling in others if every and is_worth_trying(tiling, outputs)}
    for tiling in [rule, *sorted(kept - {rule})]:
        yield _tiling_words(tiling, rule), streamed(tiling)


def by_pairs(x: Tensor, weight: Weight) -> Tensor:
    """The library's product of rows as pairs, also where the engine would not take it."""
    return multiply_pairs(x, weight[0], None, weight[1].scale)


def _tiling_words(tiling: Tiling, rule: Tiling | None = None) -> str:
    block_n, block_k, splits, warps, stages, *_ = tiling
    name = f"{block_n} x {block_k}, {splits} splits, {warps} warps, {stages} stages"
    name += ", float16" * tiling.in_float16
    return name + (" (its rule)" if tiling == rule else "")


def streamed(tiling: Tiling) -> Way:
    """The kernel with that tiling."""
    return lambda x, weight: linear(x, weight[0], None, scales=weight[1], tiling=tiling)


def is_worth_trying(tiling: Tiling, outputs: int) -> bool:
    """Whether there are programs enough, and not too many parts to add."""
    programs = -(-outputs // tiling.block_n) * tiling.splits
    return programs >= LEAST_PROGRAMS and (tiling.splits == 1 or programs <= MOST_SPLIT_PROGRAMS)


@torch.inference_mode()
def seconds(way: Callable[[Tensor, T], Tensor], x: Tensor, weights: list[T]) -> float:
    """Seconds of one product."""
    return graph_seconds(lambda: [way(x, weight) for weight in weights], REPLAYS) / len(weights)


def drawn(outputs: int, inputs: int, *, is_w8a8: bool) -> Weight:
    """A random weight and its scales."""
    weight, scale = quantised(torch.randn(outputs, inputs, device="cuda"), BLOCK)
    return weight, Scales(scale, row_blocks_of(outputs, scale.shape[0]).cuda(), is_w8a8)


def product_lines(
    rows: int, name: str, bandwidth: float, *, every: bool, is_w8a8: bool
) -> Iterator[str]:
    """Markdown, a line a way."""
    outputs, inputs = SHAPES[name]
    count = max(1, DISTINCT_BYTES // (outputs * inputs))
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    draw = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    plain = [draw(outputs, inputs) for _ in range(max(1, count // 2))]
    taken = seconds(lambda x, weight: plain_linear(x, weight, None), x, plain)
    yield _line(rows, name, "bfloat16", taken, plain[0].nbytes, bandwidth)
    del plain
    weights = [drawn(outputs, inputs, is_w8a8=is_w8a8) for _ in range(count)]
    held = weights[0][0].nbytes + weights[0][1].scale.nbytes
    tried = quantised_ways if is_w8a8 else ways
    exact = None if is_w8a8 else _exact(x, weights[0])
    for way, multiply in tried(rows, outputs, every=every):
        try:
            taken = seconds(multiply, x, weights)
            error = None if exact is None else _error(multiply(x, weights[0]), exact)
        except (RuntimeError, ValueError) as failure:
            yield f"| {rows} | {name} | {way} | not run: {str(failure).splitlines()[0]} | | | |"
            continue
        yield _line(rows, name, way, taken, held, bandwidth, error)


@torch.inference_mode()
def _exact(x: Tensor, weight: Weight) -> Tensor:
    stored, its = weight
    values = dequantised(stored, its.scale, its.row_blocks, torch.float32)
    return torch.nn.functional.linear(x.double(), values.double())


def _error(got: Tensor, exact: Tensor) -> float:
    return float(((got - exact).norm(dim=1) / exact.norm(dim=1)).max())


def expert_lines(tokens: int, name: str, bandwidth: float, *, is_w8a8: bool) -> Iterator[str]:
    """Of a layer's experts, chosen evenly: in bfloat16 and in FP8, against the chosen ones'
    bytes."""
    num_experts, top_k, hidden, size = MIXTURES[name]
    fp8 = _experts(num_experts, hidden, size)
    plain = fp8.values(torch.bfloat16)
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    # Another choice for every call, so that no cache holds the experts that it reads.
    a_call = min(num_experts, tokens * top_k) * 3 * hidden * size
    choices = [
        Choice(
            torch.rand(tokens, num_experts, device="cuda").argsort(-1)[:, :top_k].contiguous(),
            torch.rand(tokens, top_k, device="cuda", dtype=torch.bfloat16),
        )
        for _ in range(max(2, DISTINCT_BYTES // a_call))
    ]
    read = sum(len(choice.chosen.unique()) for choice in choices) / len(choices) / num_experts
    in_modes = [("bfloat16", plain), ("FP8", fp8)]
    if is_w8a8:
        in_modes.append(("FP8, W8A8", replace(fp8, is_w8a8=True)))
    for way, experts in in_modes:
        taken = seconds(partial(_applied, experts), x, choices)
        num_bytes = read * (experts.gate_up.nbytes + experts.down.nbytes)
        yield _line(tokens, f"experts of {name}", way, taken, num_bytes, bandwidth)


def _applied(experts: Experts, x: Tensor, choice: Choice) -> Tensor:
    return apply(experts, x, choice, None)


def _experts(num_experts: int, hidden: int, size: int) -> Experts:
    stored = []
    for rows, columns, parts in ((2 * size, hidden, 2), (hidden, size, 1)):
        pairs = [quantised(torch.randn(rows, columns, device="cuda")) for _ in range(num_experts)]
        scale = torch.stack([scale for _, scale in pairs])
        row_blocks = row_blocks_of(rows, scale.shape[1], parts).cuda()
        stored.append((torch.stack([w for w, _ in pairs]), ExpertScales(scale, row_blocks)))
    (gate_up, of_both), (down, of_down) = stored
    return Experts(gate_up, down, of_both, of_down)


def _line(
    rows: int,
    name: str,
    way: str,
    taken: float,
    num_bytes: float,
    bandwidth: float,
    error: float | None = None,
) -> str:
    rate = num_bytes / taken
    cells = f"{rows} | {name} | {way} | {taken * 1e6:.1f} | {rate / 1e12:.2f}"
    off = "" if error is None else f"{error:.2e}"
    return f"| {cells} | {rate / bandwidth:.0%} | {off} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="4,32,256,512", help="rows of the other operand")
    parser.add_argument("--tilings", choices=("rule", "all"), default="rule")
    parser.add_argument("--experts", action="store_true", help="time mixtures too")
    parser.add_argument("--w8a8", action="store_true", help="quantise the other operand too")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    bandwidth, facts = read_bandwidth(torch.device("cuda")), environment()
    text = [
        f"Products of FP8 weights on {facts['gpu']}, torch {facts['torch']}. Read bandwidth "
        f"{bandwidth / 1e12:.2f} TB/s, measured in this run.",
        "",
        "| rows | weights | way | us | TB/s | of read bandwidth | error |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    print("\n".join(text), flush=True)
    every = arguments.tilings == "all"
    for rows, name in product((int(word) for word in arguments.rows.split(",")), SHAPES):
        found = product_lines(rows, name, bandwidth, every=every, is_w8a8=arguments.w8a8)
        tell(found, text, arguments.output)
    for tokens, name in product(EXPERT_TOKENS if arguments.experts else (), MIXTURES):
        found = expert_lines(tokens, name, bandwidth, is_w8a8=arguments.w8a8)
        tell(found, text, arguments.output)


if __name__ == "__main__":
    main()
