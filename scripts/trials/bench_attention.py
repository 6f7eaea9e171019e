"""Decode attention against the bytes of live KV over the device's read bandwidth.

    python scripts/trials/bench_attention.py --output results/FOLDER/attention
    python scripts/trials/bench_attention.py --backends triton --contexts 1024,8192 --batch-sizes 64
    python scripts/trials/bench_attention.py --backends triton --tiles 32:2:4,64:4:3 --query-lens 4
    python scripts/trials/bench_attention.py --backends triton --kv-dtype fp8 --query-lens 4 \\
        --contexts 1024,8192 --batch-sizes 1,8,64 --output results/FOLDER/attention-fp8-kv

What is timed is what one layer of the engine calls: the write of the new rows, then attention over
each request's live rows. A forward of several layers, each with keys and values of its own, is
captured in one CUDA graph, so that no cache of the device holds what the next replay reads.
``--kv-dtype fp8`` measures each case with FP8 keys and values too, and divides its time by that of
the case beside it. ``--tiles`` runs the Triton kernel with each of these tiles
too, beside the one it chooses. On a CPU the same forward is run eager, at small sizes by default.
Shapes are MiMo-7B's unless given.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cgbench.engine.backends import DECODE_BACKENDS, resolve_backend
from cgbench.engine.calls import DecodeBackend, Rows
from cgbench.engine.kv import KvCache
from cgbench.errors import BadInputError
from cgbench.floor.device_limits import read_bandwidth
from cgbench.floor.least_time import keys_read
from cgbench.floor.work import AttentionShape
from cgbench.kernels.attention import AttentionInput, LayerKv
from cgbench.measure.setup import choose_device
from cgbench.models.quantised.kv_format import SCALE_BYTES, KvFormat
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds

# Live KV of one replay: many times the largest cache, where memory and layers allow it.
DISTINCT_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
MIN_LAYERS, MAX_LAYERS = 2, 512
MEMORY_SHARE = 0.6

DEFAULT_CONTEXTS = {"cuda": "128,1024,8192,32768", "cpu": "128,1024"}
DEFAULT_BATCH_SIZES = {"cuda": "1,8,64,256", "cpu": "1,8"}
DEFAULT_DTYPE = {"cuda": "bfloat16", "cpu": "float32"}
REPLAYS = {"cuda": 20, "cpu": 5}


@dataclass(frozen=True)
class Case:
    """One row: requests, tokens of KV before the forward, new tokens of each request."""

    backend: str
    shape: AttentionShape
    query_len: int
    batch_size: int
    context_len: int

    @property
    def is_fp8(self) -> bool:
        """Whether keys and values are in FP8."""
        return self.shape.kv_itemsize is not None

    @property
    def beside(self) -> "Case":
        """The same case with keys and values of the model's dtype."""
        return replace(self, shape=replace(self.shape, kv_itemsize=None, scale_bytes=0))

    def live_bytes(self, itemsize: int) -> float:
        """Of keys and values that one layer must read, scales included."""
        rows = keys_read(self.shape, self.context_len + self.query_len, self.query_len)
        return self.batch_size * rows * self.shape.row_bytes(itemsize)


@dataclass(frozen=True)
class Measured:
    """``seconds`` a layer, or the reason that there are none."""

    case: Case
    num_layers: int
    live_bytes: float
    seconds: float | None
    reason: str | None = None


class Layers:
    """``num_layers`` layers of KV for a case, and a forward through all of them."""

    def __init__(
        self, case: Case, num_layers: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape, batch, length = case.shape, case.batch_size, case.query_len
        kv = ((shape.kv_heads, shape.key_dim), (shape.kv_heads, shape.value_dim))
        self._case = case
        self._backend: DecodeBackend = decode_backend(case.backend)
        self._cache = KvCache(
            dict.fromkeys(range(num_layers), kv),
            max_batch_size=batch,
            room=case.context_len + length,
            dtype=dtype,
            device=device,
            kv_format=KvFormat(case.is_fp8),
        )
        for layer in self._cache.layers.values():
            for tensor in (layer.keys, layer.values):
                tensor.copy_(torch.randn_like(tensor, dtype=dtype))
            for scales in layer.scales or ():
                scales.uniform_(0.5, 2)
        self._slots = torch.arange(batch, device=device)
        offsets = torch.arange(length, device=device)
        self._positions = (offsets + case.context_len).repeat(batch, 1)

        def new(heads: int, dim: int) -> torch.Tensor:
            # As a projection leaves them: [B, S, H, D], seen as [B, H, S, D].
            made = torch.randn(batch, length, heads, dim, device=device, dtype=dtype)
            return made.transpose(1, 2)

        self._qkv = AttentionInput(
            new(shape.query_heads, shape.key_dim),
            new(shape.kv_heads, shape.key_dim),
            new(shape.kv_heads, shape.value_dim),
            shape.key_dim**-0.5,
            shape.window,
        )

    @torch.inference_mode()
    def forward(self) -> torch.Tensor:
        """Every layer's attention once; the last one's output."""
        rows = Rows(self._cache, self._slots, self._positions)
        for layer in self._cache.layers.values():
            out = self._backend(layer, rows, self._qkv)
        return out


def num_layers(case: Case, itemsize: int, device: torch.device) -> int:
    """As many as make a replay read far more than a cache holds, and fit. 0: not even two fit."""
    shape = case.shape
    row = shape.row_bytes(itemsize)
    stored = (case.batch_size + 1) * (case.context_len + case.query_len) * row
    wanted = -(-DISTINCT_BYTES[device.type] // int(case.live_bytes(itemsize)))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
    fitting = int(MEMORY_SHARE * free // stored)
    return 0 if fitting < MIN_LAYERS else max(MIN_LAYERS, min(wanted, fitting, MAX_LAYERS))


def measure(case: Case, dtype: torch.dtype, device: torch.device) -> Measured:
    """Seconds a layer, the median of some replays; a reason where the case cannot be measured."""
    count = num_layers(case, dtype.itemsize, device)
    live = case.live_bytes(dtype.itemsize)
    if not count:
        return Measured(case, 0, live, None, "does not fit")
    try:
        layers = Layers(case, count, dtype, device)
        seconds = _cuda_seconds(layers) if device.type == "cuda" else _cpu_seconds(layers)
    except torch.OutOfMemoryError:
        return Measured(case, count, live, None, "out of memory")
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return Measured(case, count, live, seconds / count)


def _cpu_seconds(layers: Layers) -> float:
    def one() -> float:
        start = time.perf_counter()
        layers.forward()
        return time.perf_counter() - start

    one()
    return median(one() for _ in range(REPLAYS["cpu"]))


def _cuda_seconds(layers: Layers) -> float:
    return graph_seconds(layers.forward, REPLAYS["cuda"])


def cases(arguments: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Every combination, the backends of one setting side by side."""
    contexts = arguments.contexts or DEFAULT_CONTEXTS[device.type]
    batch_sizes = arguments.batch_sizes or DEFAULT_BATCH_SIZES[device.type]
    settings = product(
        _integers(arguments.windows),
        _integers(arguments.query_lens),
        _integers(batch_sizes),
        _integers(contexts),
        [
            *backends(arguments.backends, device),
            *(f"triton {tile}" for tile in arguments.tiles.split(",") if tile),
        ],
        (False, True) if arguments.kv_dtype == "fp8" else (False,),
    )
    heads, kv_heads, dim = arguments.heads, arguments.kv_heads, arguments.head_dim
    for window, query_len, batch_size, context_len, backend, is_fp8 in settings:
        kept = (1, SCALE_BYTES) if is_fp8 else (None, 0)
        shape = AttentionShape(heads, kv_heads, dim, dim, window or None, False, *kept)
        yield Case(backend, shape, query_len, batch_size, context_len)


def decode_backend(name: str) -> DecodeBackend:
    """The backend of that name; ``triton N:W:S`` reads tiles of N keys by W warps in S stages."""
    name, _, numbers = name.partition(" ")
    if not numbers:
        return DECODE_BACKENDS[name]
    # Imported here: triton is there only beside a CUDA build of torch.
    from cgbench.kernels import triton_attention

    tile = triton_attention.KeyTile(*map(int, numbers.split(":")))

    def decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> torch.Tensor:
        return triton_attention.decode(kv, qkv, rows.slots, rows.positions, rows.cache.room, tile)

    return decode


def _integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def backends(names: str, device: torch.device) -> list[str]:
    """Those named, or all that the device can run. Raises ``BadInputError`` for one it cannot."""
    if names != "all":
        return [resolve_backend(name, device).name for name in names.split(",")]
    return [name for name in DECODE_BACKENDS if _runs_on(name, device)]


def _runs_on(name: str, device: torch.device) -> bool:
    try:
        resolve_backend(name, device)
    except BadInputError:
        return False
    return True


def table(rows: list[Measured], bandwidth: float) -> list[str]:
    """Markdown, a line a case. FP8 keys and values add two columns."""
    has_fp8 = any(row.case.is_fp8 for row in rows)
    lines = [
        "| backend | query_len | window | batch [req] | context | layers | us / layer | GB/s "
        "| of read bandwidth |" + (" KV | of the other KV's time |" if has_fp8 else ""),
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|" + ("---|---:|" if has_fp8 else ""),
    ]
    seconds = {row.case: row.seconds for row in rows}
    for row in rows:
        case = row.case
        setting = (
            f"| {case.backend} | {case.query_len} | {case.shape.window or ''} "
            f"| {case.batch_size} | {case.context_len} | {row.num_layers} "
        )
        if row.seconds is None:
            lines.append(f"{setting}| {row.reason} | | |" + (" | |" if has_fp8 else ""))
            continue
        rate = row.live_bytes / row.seconds
        beside = seconds.get(case.beside) if case.is_fp8 else None
        ratio = "" if beside is None else f"{row.seconds / beside:.2f}"
        added = f" {'fp8' if case.is_fp8 else 'auto'} | {ratio} |" if has_fp8 else ""
        lines.append(
            f"{setting}| {row.seconds * 1e6:.2f} | {rate / 1e9:,.0f} | {rate / bandwidth:.0%} |"
            f"{added}"
        )
    return lines


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", default="all", help="all, or names as --attention has them")
    parser.add_argument("--tiles", default="", help="keys:warps:stages, for the Triton kernel")
    parser.add_argument("--contexts", help="tokens of KV per request")
    parser.add_argument("--batch-sizes", help="requests")
    parser.add_argument("--query-lens", default="1,4,9", help="new tokens per request, k + 1")
    parser.add_argument("--windows", default="0", help="sliding windows; 0: none")
    parser.add_argument("--heads", type=int, default=32, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    parser.add_argument(
        "--kv-dtype", choices=("auto", "fp8"), default="auto", help="fp8: beside auto's"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--output", type=Path, help="write NAME.md and NAME.json")
    return parser.parse_args(words)


def heading(arguments: argparse.Namespace, dtype: torch.dtype, facts: dict[str, Any]) -> str:
    """What all rows share."""
    where = facts.get("gpu") or facts.get("cpu")
    return (
        f"Decode attention on {where}, torch {facts['torch']}, {arguments.heads} query heads, "
        f"{arguments.kv_heads} KV heads of {arguments.head_dim}, "
        f"{str(dtype).removeprefix('torch.')}. Bytes are the live keys and values; the time holds "
        "the writing of the new ones too."
    )


def write(output: Path, text: str, record: dict[str, Any]) -> None:
    """``NAME.md`` and ``NAME.json``."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


def main(words: list[str] | None = None) -> None:
    arguments = parse_arguments(words)
    device = choose_device(arguments.device)
    dtype = getattr(torch, arguments.dtype or DEFAULT_DTYPE[device.type])
    bandwidth = read_bandwidth(device)
    rows = []
    for case in cases(arguments, device):
        rows.append(measure(case, dtype, device))
        print(table(rows, bandwidth)[-1], file=sys.stderr, flush=True)
    facts = environment()
    limit = f"Read bandwidth {bandwidth / 1e9:,.0f} GB/s, measured in this run."
    text = "\n".join([heading(arguments, dtype, facts), limit, "", *table(rows, bandwidth), ""])
    print(text)
    if arguments.output is not None:
        measured = [asdict(row) for row in rows]
        record = {"read_bytes_per_s": bandwidth, "rows": measured, "environment": facts}
        write(arguments.output, text, record)


if __name__ == "__main__":
    main()
