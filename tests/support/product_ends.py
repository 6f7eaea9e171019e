"""A product by a kernel with each of its ends, against float64."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.triton_rotary import Rotary


def random_rotary(product: Tensor) -> tuple[Rotary, Tensor]:
    """Of all of ``product``'s heads but the last, of the largest size that there are two of; and
    what it leaves, in float64."""
    rows, outputs = product.shape
    size = max(size for size in (8, 20, 32, 128) if outputs % size == 0 and outputs > size)
    cos, sin = torch.randn(2, rows, size, device=product.device, dtype=product.dtype)
    heads = product.double().unflatten(-1, (-1, size))
    turned = heads[:, :-1]
    low, high = turned.chunk(2, dim=-1)
    across = torch.cat((-high, low), dim=-1)
    heads[:, :-1] = turned * cos[:, None] + across * sin[:, None]
    return Rotary(cos, sin, outputs - size), heads.flatten(1)


def ends_of(linear: Callable[..., Tensor], expected: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What ``linear(**end)`` returns for each end, and what it should be.

    ``expected`` is the product in float64.
    """
    product = linear()
    residual = torch.randn_like(product)
    yield product, expected
    yield linear(residual=residual), expected + residual.double()
    # Rounded where torch's operations round: against them, of the very same product.
    gate, up = product.chunk(2, dim=-1)
    yield linear(is_gated=True), (F.silu(gate) * up).double()
    rotary, rotated = random_rotary(product)
    yield linear(rotary=rotary), rotated


def drawn(case: tuple[int, int, int, bool], device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """``x``, the weight, the bias or None, and the product in float64."""
    rows, outputs, inputs, has_bias = case
    torch.manual_seed(rows)
    # A part of wider rows: consecutive rows are not next to each other in memory.
    x = torch.randn(rows, 2 * inputs, device=device, dtype=dtype)[:, :inputs]
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype) / inputs**0.5
    bias = torch.randn(outputs, device=device, dtype=dtype) if has_bias else None
    wide = None if bias is None else bias.double()
    return x, weight, bias, F.linear(x.double(), weight.double(), wide)


def largest_error(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
    """The largest relative error of what was returned."""
    return max(float((got.double() - right).norm() / right.norm()) for got, right in pairs)
