"""Choose how many rows cuBLAS multiplies, by timing it before a capture.

cuBLAS chooses a kernel by a product's sizes, and sometimes a slow one. On an H200, 240 rows of
gate and up of MiMo-7B's shape take 90 us, and 256 rows 64 us. So a product of more rows than
``triton_linear`` takes is timed as it is and with rows added, and the fastest is kept. It holds
until the graphs are released, so captured graphs and eager runs round alike.
Source: results/h200/linear-rows.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_ROWS = 65
MOST_ROWS = 512
"""More rows are bound by arithmetic, where a few rows more are a small part."""

_MULTIPLES = (8, 64)
_ROUNDS = 7
_LEAST_GAIN = 0.1
"""A choice that gains less may be noise, and would differ from run to run."""

_FLUSHED_CACHES = 2


class Product(NamedTuple):
    """A product is its sizes, ``[rows, inputs]`` by ``[outputs, inputs]``, its dtype and device."""

    rows: int
    outputs: int
    inputs: int
    dtype: torch.dtype
    device: torch.device


_choices: dict[Product, int] = {}
"""The rows that are multiplied of each product that was timed."""

_depth = 0


@contextmanager
def choosing() -> Iterator[None]:
    """Time every product inside the context whose rows were not chosen yet.

    It waits for the device, so no graph may be captured inside.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def may_choose(num_rows: int) -> bool:
    """Return whether products of up to ``num_rows`` rows hold any that is timed."""
    return num_rows >= LEAST_ROWS


def forget() -> None:
    """Forget every choice, when the graphs that hold them are gone."""
    _choices.clear()


def padded_products() -> list[str]:
    """Return the products that are multiplied with rows added, in words."""
    return [
        f"{made.rows} x {made.inputs} by {made.outputs} as {rows} rows"
        for made, rows in sorted(_choices.items(), key=lambda each: each[0][:3])
        if rows > made.rows
    ]


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``F.linear``, with rows added where that was faster."""
    num_rows = x.numel() // max(1, x.shape[-1])
    if not LEAST_ROWS <= num_rows <= MOST_ROWS:
        return F.linear(x, weight, bias)
    made = Product(num_rows, weight.shape[0], weight.shape[1], x.dtype, x.device)
    if _depth and made not in _choices:
        _choices[made] = _fastest(x.reshape(num_rows, -1), weight, made)
    chosen = _choices.get(made, num_rows)
    if chosen == num_rows:
        return F.linear(x, weight, bias)
    out = _padded(x.reshape(num_rows, -1), weight, bias, chosen)
    return out.view(*x.shape[:-1], len(weight))


def _padded(x: Tensor, weight: Tensor, bias: Tensor | None, num_rows: int) -> Tensor:
    # What the added rows hold touches no other row.
    padded = x.new_empty(num_rows, x.shape[1])
    padded[: len(x)] = x
    return F.linear(padded, weight, bias)[: len(x)]


def _fastest(x: Tensor, weight: Tensor, made: Product) -> int:
    candidates = sorted({made.rows, *(made.rows // each * each + each for each in _MULTIPLES)})
    seconds = _timed(x, weight, candidates)
    best = min(candidates, key=lambda rows: seconds[rows])
    gain = 1 - seconds[best] / seconds[made.rows]
    return best if gain >= _LEAST_GAIN else made.rows


def _timed(x: Tensor, weight: Tensor, candidates: list[int]) -> dict[int, float]:
    """Return the median seconds of each number of rows, timed in turns past an emptied L2."""
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size
    filler = torch.empty(_FLUSHED_CACHES * cache, dtype=torch.uint8, device=x.device)
    marks: dict[int, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {
        rows: [] for rows in candidates
    }
    for _ in range(_ROUNDS):
        for rows in candidates:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # The launches are done while the device still fills its cache.
            filler.zero_()
            start.record()
            if rows == len(x):
                F.linear(x, weight)
            else:
                _padded(x, weight, None, rows)
            end.record()
            marks[rows].append((start, end))
    torch.cuda.synchronize(x.device)
    return {
        rows: median(start.elapsed_time(end) for start, end in pairs) / 1e3
        for rows, pairs in marks.items()
    }
