"""Describe a gated delta net: its sizes and weights, the rows it projects, and its kept state.

``delta_rule`` computes with them. ``engine.recurrent`` has the derivation.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

LEAST_PENDING = 16
"""At least this many rows may be pending before the matrices take them up.

A pending row is read again by every verify, and a matrix of 128 x 128 is as long as 64 such rows.
"""


def most_pending(query_len: int) -> int:
    """Return how many accepted rows the matrices may lack. ``query_len`` is the most rows of a
    verify.

    One verify's rows must fit. Up to half of the room they fit beside others.
    """
    least = LEAST_PENDING if query_len <= LEAST_PENDING // 2 else 2 * LEAST_PENDING
    return max(least, 1 << (query_len - 1).bit_length())


@dataclass(frozen=True, slots=True)
class StateShape:
    """A state shape is the size of what one linear-attention layer keeps of a request.

    It does not grow with the request. There is a ``[num_heads, key_size, value_size]`` matrix, in
    float32 as transformers keeps it. There are also the ``conv_rows`` newest of the convolution's
    inputs, of ``conv_channels`` each.
    """

    num_heads: int
    key_size: int
    value_size: int
    conv_channels: int
    conv_rows: int

    @property
    def matrix_elements(self) -> int:
        """Return how many numbers the matrices of all heads hold."""
        return self.num_heads * self.key_size * self.value_size

    def num_bytes(self, itemsize: int) -> int:
        """Return the bytes of a request's state. ``itemsize`` is of the model's dtype."""
        matrix = self.matrix_elements * torch.float32.itemsize
        return matrix + self.conv_rows * self.conv_channels * itemsize

    @property
    def update_bytes(self) -> int:
        """Return the bytes kept of each verified row for the matrices to take up."""
        return self.num_heads * (self.key_size + self.value_size + 1) * torch.float32.itemsize

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes kept of each verified row, from which the state after it is made."""
        return self.update_bytes + self.conv_channels * dtype.itemsize


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """A delta net holds the sizes and weights that a gated delta net's recurrence and norm take.

    ``conv_weight [C, conv_rows + 1]`` and ``conv_bias [C]`` are the convolution's. C holds the
    query and key of ``num_key_heads`` and the value of ``num_heads``. ``a_log [num_heads]`` and
    ``dt_bias [num_heads]`` make the decay. Each key head serves a group of value heads.
    ``norm_weight [value_size]`` and ``norm_epsilon`` are those of the norm of a head's output.
    """

    conv_weight: Tensor
    conv_bias: Tensor | None
    activation: str
    a_log: Tensor
    dt_bias: Tensor
    norm_weight: Tensor
    norm_epsilon: float
    num_key_heads: int
    num_heads: int
    key_size: int
    value_size: int

    @property
    def state_shape(self) -> StateShape:
        """Return the shape of the state that such a layer keeps of a request."""
        channels, taps = self.conv_weight.shape
        return StateShape(self.num_heads, self.key_size, self.value_size, channels, taps - 1)


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """Delta rows are tokens as a gated delta net projects them, ``[B, S, num_key_heads, ...]``.

    All are parts of a product's columns, in whatever order the model has them. ``query`` and
    ``key [..., key_size]`` are one key head's. ``value`` and ``gate [..., group * value_size]``,
    ``rate`` and ``time_step [..., group]`` are of the value heads that it serves. The last two make
    beta and the decay. The gate multiplies the normed output.
    """

    net: DeltaNet
    query: Tensor
    key: Tensor
    value: Tensor
    gate: Tensor
    rate: Tensor
    time_step: Tensor

    @property
    def mixed(self) -> Tensor:
        """Return the convolution's input ``[B, S, C]``, a copy."""
        return torch.cat([each.flatten(2) for each in (self.query, self.key, self.value)], dim=-1)

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Return B and S."""
        return self.query.shape[0], self.query.shape[1]


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Head rows are what the gated delta rule takes of each token, ``[B, S, heads, ...]``.

    ``query`` and ``key`` are not normed yet. ``log_decay`` is at most 0. ``beta`` is how much of a
    row enters the state.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    beta: Tensor


@dataclass(frozen=True, slots=True)
class LayerState:
    """A layer state holds one linear-attention layer's buffers, by slot.

    ``matrix [slots, H, Dk, Dv]`` is in float32, at the length in the cache's ``length``.
    ``conv [slots, ring, C]`` holds the convolution's newest inputs, that of position p in row p
    modulo ring. The ring has k + 1 rows more than the kernel sees, so no row that may still be read
    is written over.

    ``keys [slots, H, ring, Dk]``, ``updates [slots, H, ring, Dv]`` and
    ``log_decays [slots, H, ring]`` are in float32. They are what verified rows add to the matrix,
    that of position p in row p modulo ring. Log decays are sums since the matrix. The ring has
    k + 1 rows beside those that may be pending, so no pending row is written over.
    """

    matrix: Tensor
    conv: Tensor
    keys: Tensor
    updates: Tensor
    log_decays: Tensor
    most_pending: int
    """At most this many accepted rows are kept beside the matrix."""

    @classmethod
    def zeros(
        cls,
        shape: StateShape,
        num_slots: int,
        query_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """Return zeroed buffers of ``num_slots`` slots.

        ``query_len`` is the most rows of one verify.
        """
        heads, conv_ring = (num_slots, shape.num_heads), shape.conv_rows + query_len
        ring = kept_rows(query_len)
        return cls(
            matrix=torch.zeros(*heads, shape.key_size, shape.value_size, device=device),
            conv=torch.zeros(num_slots, conv_ring, shape.conv_channels, dtype=dtype, device=device),
            keys=torch.zeros(*heads, ring, shape.key_size, device=device),
            updates=torch.zeros(*heads, ring, shape.value_size, device=device),
            log_decays=torch.zeros(*heads, ring, device=device),
            most_pending=most_pending(query_len),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the buffers by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def kept_rows(query_len: int) -> int:
    """Return the rows of a ring that holds one verify's beside those that may be pending."""
    return most_pending(query_len) + query_len
