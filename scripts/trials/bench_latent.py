"""Latent attention against the bytes of live latents, and against the matrix rate.

    python scripts/trials/bench_latent.py --output results/FOLDER/latent
    python scripts/trials/bench_latent.py --heads 128 --query-lens 4 --batch-sizes 64
    python scripts/trials/bench_latent.py --ways attention --tiles 64:64:8:2,64:32:8:3,16:64:8:2:1

Ways:

- ``attention``: the Triton kernel and the merging of its splits, from an absorbed query to
  ``[B, S, H, 512]``. FlashMLA computes the same.
- ``layer``: with the products by W_UK and W_UV, as the engine runs it.
- ``definition``: the same layer in torch.
- ``expanded``: the GQA kernel on every head's keys and values, as ``--attention triton`` runs it.
- ``flash-mla``: the dense Hopper kernel of ``sgl-flash-mla``, if it imports.

Several layers, each with latents of its own, are captured in one CUDA graph, so that no cache holds
what the next replay reads. ``--tiles`` gives rows:latents:warps:stages, and a fifth number 1 for
swapped operands. On a CPU only the definition runs, small. Sizes are DeepSeek-V3's unless given.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cgbench.engine.backends import triton_decode
from cgbench.engine.calls import Rows
from cgbench.engine.kv import KvCache
from cgbench.floor.device_limits import device_limits
from cgbench.floor.least_time import attention_flops
from cgbench.floor.rates import DeviceLimits
from cgbench.floor.work import AttentionShape
from cgbench.kernels.attention import AttentionInput
from cgbench.kernels.mla.latent_attention import LatentInput, decode_by_torch
from cgbench.kernels.mla.latent_weights import LatentWeights
from cgbench.measure.setup import choose_device
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds

DISTINCT_BYTES = {"cuda": 1 << 30, "cpu": 1 << 20}
"""Live latents of one replay: many times the largest cache, where memory and layers allow it."""
MIN_LAYERS, MAX_LAYERS = 2, 128
MEMORY_SHARE = 0.6
PAGE = 64
"""Rows of FlashMLA's pages."""

WAYS = {
    "cuda": "attention,layer,definition,expanded,flash-mla",
    "cpu": "definition",
}
DEFAULTS = {
    "cuda": {"contexts": "1024,8192", "batch_sizes": "1,8,64", "heads": "16,20,128"},
    "cpu": {"contexts": "64", "batch_sizes": "1,2", "heads": "4"},
}
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}
REPLAYS = {"cuda": 20, "cpu": 3}


@dataclass(frozen=True)
class Sizes:
    """Of a latent and of a head."""

    rank: int
    rotary: int
    key_size: int
    value_size: int


@dataclass(frozen=True)
class Case:
    """One row: requests, tokens of context before the forward, new tokens of each request."""

    way: str
    heads: int
    query_len: int
    batch_size: int
    context_len: int
    sizes: Sizes

    @property
    def shape(self) -> AttentionShape:
        """What the floor makes of it."""
        sizes = self.sizes
        row = sizes.rank + sizes.rotary
        return AttentionShape(self.heads, 1, row, sizes.rank, None, is_latent=True)

    def live_bytes(self, itemsize: int) -> int:
        """Of latents that one layer must read."""
        rows = self.batch_size * (self.context_len + self.query_len)
        return rows * self.shape.row_elements * itemsize

    @property
    def flops(self) -> float:
        """Operations of one layer's attention in the absorbed form."""
        keys = self.context_len + self.query_len
        return self.batch_size * attention_flops(self.shape, keys, self.query_len)


@dataclass(frozen=True)
class Measured:
    """``seconds`` a layer, or the reason that there are none."""

    case: Case
    num_layers: int
    live_bytes: int
    flops: float
    seconds: float | None
    reason: str | None = None


class Layers:
    """``count`` layers of latents for a case, and a forward through all of them."""

    def __init__(self, case: Case, count: int, dtype: torch.dtype, device: torch.device) -> None:
        sizes, batch, length = case.sizes, case.batch_size, case.query_len
        expanded = case.way == "expanded"
        row = (1, sizes.rank + sizes.rotary), (1, 0)
        if expanded:
            row = (
                (case.heads, sizes.key_size + sizes.rotary),
                (case.heads, sizes.value_size),
            )
        # Whole pages, so that FlashMLA reads the same tensors.
        room = -(-(case.context_len + length) // PAGE) * PAGE
        self.case = case
        self.cache = KvCache(
            dict.fromkeys(range(count), row),
            max_batch_size=batch,
            room=room,
            dtype=dtype,
            device=device,
        )
        for layer in self.cache.layers.values():
            layer.keys.normal_()
            layer.values.normal_()
        self.slots = torch.arange(batch, device=device)
        self.positions = (torch.arange(length, device=device) + case.context_len).repeat(batch, 1)

        def new(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype)

        rows = case.heads * (sizes.key_size + sizes.value_size)
        self.weights = LatentWeights(
            new(rows, sizes.rank) * sizes.rank**-0.5, sizes.key_size, sizes.value_size
        )
        key_dim = sizes.key_size + sizes.rotary
        query = new(batch, length, case.heads, key_dim).transpose(1, 2)
        latent = new(batch, 1, length, sizes.rank + sizes.rotary)
        self.new = LatentInput(query, latent, self.weights, key_dim**-0.5, None)
        self.absorbed = new(batch, case.heads, length, sizes.rank)
        self.qkv = AttentionInput(
            query,
            new(batch, length, case.heads if expanded else 1, key_dim).transpose(1, 2),
            new(batch, length, case.heads if expanded else 1, sizes.value_size).transpose(1, 2),
            key_dim**-0.5,
            None,
        )

    @property
    def places(self) -> tuple[Tensor, Tensor, int]:
        """As the kernels take them."""
        return self.slots, self.positions, self.cache.room


def attention_way(layers: Layers, tile: Any = None) -> Callable[[], object]:
    """The Triton kernel and its merging."""
    # Imported here: triton is there only beside a CUDA build of torch.
    from cgbench.kernels.mla import triton_latent

    def run() -> None:
        for layer in layers.cache.layers.values():
            triton_latent.attend(layer.keys, layers.absorbed, layers.new, *layers.places, tile)

    return run


def layer_way(layers: Layers) -> Callable[[], object]:
    """As the engine runs a layer."""
    from cgbench.kernels.mla import triton_latent

    def run() -> None:
        for layer in layers.cache.layers.values():
            triton_latent.decode(layer.keys, layers.new, *layers.places)

    return run


def definition_way(layers: Layers) -> Callable[[], object]:
    """The same in torch."""

    def run() -> None:
        for layer in layers.cache.layers.values():
            decode_by_torch(layer.keys, layers.new, *layers.places)

    return run


def expanded_way(layers: Layers) -> Callable[[], object]:
    """The GQA kernel on keys and values of every head."""

    def run() -> None:
        rows = Rows(layers.cache, layers.slots, layers.positions)
        for layer in layers.cache.layers.values():
            triton_decode(layer, rows, layers.qkv)

    return run


def flash_mla_way(layers: Layers) -> Callable[[], object]:
    """FlashMLA's dense kernel for Hopper, on the same latents as pages. It writes none."""
    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    case, cache = layers.case, layers.cache
    rank, row = case.sizes.rank, case.sizes.rank + case.sizes.rotary
    pages = cache.room // PAGE
    device = layers.slots.device
    table = torch.arange(case.batch_size * pages, dtype=torch.int32, device=device)
    lengths = layers.positions[:, -1].int() + 1
    query = torch.cat([layers.absorbed, layers.new.rotary], -1).transpose(1, 2).contiguous()
    schedule, _ = get_mla_metadata()

    def run() -> None:
        for layer in cache.layers.values():
            flash_mla_with_kvcache(
                query,
                layer.keys.view(-1, PAGE, 1, row),
                table.view(case.batch_size, pages),
                lengths,
                rank,
                schedule,
                softmax_scale=layers.new.scaling,
                causal=True,
                use_legacy=True,
            )

    return run


def way_of(layers: Layers) -> Callable[[], object]:
    """What runs all layers of a case."""
    name, _, numbers = layers.case.way.partition(" ")
    if numbers:
        from cgbench.kernels.mla import triton_latent

        rows, keys, warps, stages, *swapped = map(int, numbers.split(":"))
        tile = triton_latent.LatentTile(rows, keys, warps, stages, bool(swapped and swapped[0]))
        return attention_way(layers, tile)
    ways = {
        "attention": attention_way,
        "layer": layer_way,
        "definition": definition_way,
        "expanded": expanded_way,
        "flash-mla": flash_mla_way,
    }
    return ways[name](layers)


def num_layers(case: Case, itemsize: int, device: torch.device) -> int:
    """As many as make a replay read far more than a cache holds, and fit. 0: not even two fit."""
    sizes = case.sizes
    row = sizes.rank + sizes.rotary
    if case.way == "expanded":
        row = case.heads * (sizes.key_size + sizes.rotary + sizes.value_size)
    stored = (case.batch_size + 1) * (case.context_len + case.query_len + PAGE) * row * itemsize
    wanted = -(-DISTINCT_BYTES[device.type] // case.live_bytes(itemsize))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
    fitting = int(MEMORY_SHARE * free // stored)
    return 0 if fitting < MIN_LAYERS else max(MIN_LAYERS, min(wanted, fitting, MAX_LAYERS))


def measure(case: Case, dtype: torch.dtype, device: torch.device) -> Measured:
    """Seconds a layer, the median of some replays; a reason where the case cannot be measured."""
    count = num_layers(case, dtype.itemsize, device)
    live, flops = case.live_bytes(dtype.itemsize), case.flops
    if not count:
        return Measured(case, 0, live, flops, None, "does not fit")
    try:
        with torch.inference_mode():
            run = way_of(Layers(case, count, dtype, device))
            seconds = _seconds(run, device)
    except torch.OutOfMemoryError:
        return Measured(case, count, live, flops, None, "out of memory")
    # A peer that is missing, or that refuses a shape, in its own words.
    except (ImportError, RuntimeError, AssertionError) as error:
        words = str(error).strip().partition("\n")[0] or type(error).__name__
        return Measured(case, count, live, flops, None, words)
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return Measured(case, count, live, flops, seconds / count)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        return graph_seconds(run, REPLAYS["cuda"])

    def one() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    one()
    return median(one() for _ in range(REPLAYS["cpu"]))


def cases(arguments: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Every combination, the ways of one setting side by side."""
    given, default = vars(arguments), DEFAULTS[device.type]
    lists = {name: _integers(given[name] or default[name]) for name in default}
    ways = [
        *(arguments.ways or WAYS[device.type]).split(","),
        *(f"attention {tile}" for tile in arguments.tiles.split(",") if tile),
    ]
    sizes = Sizes(arguments.rank, arguments.rotary, arguments.key_size, arguments.value_size)
    for heads, query_len, batch_size, context_len, way in product(
        lists["heads"],
        _integers(arguments.query_lens),
        lists["batch_sizes"],
        lists["contexts"],
        ways,
    ):
        yield Case(way, heads, query_len, batch_size, context_len, sizes)


def _integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def table(rows: list[Measured], limits: DeviceLimits) -> list[str]:
    """Markdown, a line a case."""
    lines = [
        "| way | heads | query_len | batch [req] | context | layers | us / layer | TFLOP/s "
        "| of matrix rate | GB/s | of read bandwidth |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        case = row.case
        setting = (
            f"| {case.way} | {case.heads} | {case.query_len} | {case.batch_size} "
            f"| {case.context_len} | {row.num_layers} "
        )
        if row.seconds is None:
            lines.append(f"{setting}| {row.reason} | | | | |")
            continue
        rate, flops = row.live_bytes / row.seconds, row.flops / row.seconds
        lines.append(
            f"{setting}| {row.seconds * 1e6:.2f} | {flops / 1e12:,.1f} "
            f"| {flops / limits.flops_per_s:.0%} | {rate / 1e9:,.0f} "
            f"| {rate / limits.read_bytes_per_s:.0%} |"
        )
    return lines


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", help="which of the ways above")
    parser.add_argument("--tiles", default="", help="rows:latents:warps:stages[:1], to try")
    parser.add_argument("--contexts", help="tokens of context per request")
    parser.add_argument("--batch-sizes", help="requests")
    parser.add_argument("--heads", help="query heads, as one rank holds them")
    parser.add_argument("--query-lens", default="1,4", help="new tokens per request, k + 1")
    parser.add_argument("--rank", type=int, default=512, help="values of a latent")
    parser.add_argument("--rotary", type=int, default=64, help="values of a rotary key")
    parser.add_argument("--key-size", type=int, default=128, help="of a head, without rotary")
    parser.add_argument("--value-size", type=int, default=128, help="of a head")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--output", type=Path, help="write NAME.md and NAME.json")
    return parser.parse_args(words)


def heading(dtype: torch.dtype, facts: dict[str, Any], limits: DeviceLimits) -> str:
    """What all rows share."""
    where = facts.get("gpu") or facts.get("cpu")
    return (
        f"Latent attention on {where}, torch {facts['torch']}, "
        f"{str(dtype).removeprefix('torch.')}. Bytes and operations are of the absorbed form, for "
        f"every way. Read bandwidth {limits.read_bytes_per_s / 1e9:,.0f} GB/s, matrix rate "
        f"{limits.flops_per_s / 1e12:,.0f} TFLOP/s, measured in this run."
    )


def main(words: list[str] | None = None) -> None:
    arguments = parse_arguments(words)
    device = choose_device(arguments.device)
    dtype = DTYPE[device.type]
    limits = device_limits(device, dtype)
    rows = []
    for case in cases(arguments, device):
        rows.append(measure(case, dtype, device))
        print(table(rows[-1:], limits)[-1], file=sys.stderr, flush=True)
    facts = environment()
    text = "\n".join([heading(dtype, facts, limits), "", *table(rows, limits), ""])
    print(text)
    if arguments.output is not None:
        output: Path = arguments.output
        output.parent.mkdir(parents=True, exist_ok=True)
        output.with_suffix(".md").write_text(text, encoding="utf-8")
        record = {
            "read_bytes_per_s": limits.read_bytes_per_s,
            "flops_per_s": limits.flops_per_s,
            "rows": [asdict(row) for row in rows],
            "environment": facts,
        }
        output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
