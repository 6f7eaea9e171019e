"""Define one verify of a gated delta net over slots in torch, and choose its kernel.

The kernel is ``triton_recurrent``. What the recurrence takes stands here too, as in transformers.
``engine.recurrent`` has the derivation.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels


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

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes kept of each verified row, from which the state after it is made."""
        matrix = self.num_heads * (self.key_size + self.value_size + 1) * torch.float32.itemsize
        return matrix + self.conv_channels * dtype.itemsize


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """A delta net holds the sizes and weights that the recurrence of a gated delta net takes.

    ``conv_weight [C, conv_rows + 1]`` and ``conv_bias [C]`` are the convolution's. C holds the
    query and key of ``num_key_heads`` and the value of ``num_heads``. ``a_log [num_heads]`` and
    ``dt_bias [num_heads]`` make the decay. Each key head serves a group of value heads.
    """

    conv_weight: Tensor
    conv_bias: Tensor | None
    activation: str
    a_log: Tensor
    dt_bias: Tensor
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
    """Delta rows are tokens as a gated delta net projects them.

    ``mixed [B, S, C]`` is the convolution's input. ``rate`` and ``time_step [B, S, num_heads]``
    make beta and the decay.
    """

    net: DeltaNet
    mixed: Tensor
    rate: Tensor
    time_step: Tensor


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

    ``keys [slots, H, k + 1, Dk]``, ``updates [slots, H, k + 1, Dv]`` and
    ``log_decays [slots, H, k + 1]`` are in float32. They are what verify's rows add to the matrix.
    """

    matrix: Tensor
    conv: Tensor
    keys: Tensor
    updates: Tensor
    log_decays: Tensor

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
        heads, ring = (num_slots, shape.num_heads), shape.conv_rows + query_len
        return cls(
            matrix=torch.zeros(*heads, shape.key_size, shape.value_size, device=device),
            conv=torch.zeros(num_slots, ring, shape.conv_channels, dtype=dtype, device=device),
            keys=torch.zeros(*heads, query_len, shape.key_size, device=device),
            updates=torch.zeros(*heads, query_len, shape.value_size, device=device),
            log_decays=torch.zeros(*heads, query_len, device=device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the buffers by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def delta_rule(
    layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> Tensor:
    """Return what ``rows`` read of the state, ``[B, S, H, Dv]``.

    They are in ``slots [B]`` at ``positions [B, S]``. They read after the ``num_pending [B]`` kept
    rows, which the matrices take up first. The layer keeps the matrices before ``rows``, and what
    each row adds to them.
    """
    if _has_kernel(rows):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels import triton_recurrent

        return triton_recurrent.delta_rule(layer, rows, slots, positions, num_pending)
    return delta_rule_by_torch(layer, rows, slots, positions, num_pending)


def _has_kernel(rows: DeltaRows) -> bool:
    """Return whether ``triton_recurrent`` has these rows' activation, that of the published
    models."""
    return runs_kernels(rows.mixed.device) and rows.net.activation == "silu"


def delta_rule_by_torch(
    layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> Tensor:
    """Compute ``delta_rule`` in torch's operations, which define it."""
    num_before = rows.net.state_shape.conv_rows
    inputs = conv_inputs(layer.conv, rows.mixed, slots, positions, num_before)
    return head_rule(layer, head_rows(rows, inputs), slots, positions, num_pending)


def conv_inputs(
    ring: Tensor, rows: Tensor, slots: Tensor, positions: Tensor, num_before: int
) -> Tensor:
    """Return ``rows [B, S, C]`` behind the ring's ``num_before`` newest, and store them in the
    ring."""
    newest = positions[:, :1] + torch.arange(-num_before, 0, device=rows.device)
    of_slot = slots[:, None]
    before = ring[of_slot, newest % ring.shape[1]].masked_fill((newest < 0)[..., None], 0)
    ring[of_slot, positions % ring.shape[1]] = rows
    return torch.cat([before, rows], dim=1)


def head_rule(
    layer: LayerState, rows: HeadRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> Tensor:
    """Apply the gated delta rule to rows that the convolution has passed. See ``delta_rule``."""
    matrix = advanced(layer, slots, num_pending, positions[:, 0] == 0)
    layer.matrix[slots] = matrix
    out, keys, updates, log_decays = delta_rows(matrix, rows)
    length = keys.shape[2]
    layer.keys[slots, :, :length] = keys
    layer.updates[slots, :, :length] = updates
    layer.log_decays[slots, :, :length] = log_decays
    return out.transpose(1, 2).to(rows.value.dtype)


def advanced(layer: LayerState, slots: Tensor, count: Tensor, is_first: Tensor) -> Tensor:
    """Return the matrices ``[B, H, Dk, Dv]`` of ``slots`` after the first ``count [B]`` kept rows.

    A row past ``count`` has weight 0 exactly. If count is 0, the old matrix has weight 1 exactly.
    At ``is_first [B]`` nothing came before. So a padded row computes the same whatever scratch
    holds. It must, because it may share an expert's matrix product with a request.
    """
    log_decays = layer.log_decays[slots]
    last = (count - 1).clamp(min=0)[:, None, None].expand(-1, log_decays.shape[1], 1)
    total = log_decays.gather(2, last) * (count > 0)[:, None, None]
    is_past = torch.arange(log_decays.shape[2], device=slots.device) >= count[:, None]
    # Masked before exp, because past ``count`` the difference is positive and may overflow.
    weights = (total - log_decays).masked_fill(is_past[:, None], float("-inf")).exp()
    weighted = layer.keys[slots] * weights[..., None]
    weight = total.exp().masked_fill(is_first[:, None, None], 0)
    kept = layer.matrix[slots] * weight[..., None]
    added = weighted.transpose(2, 3), layer.updates[slots]
    # One kernel over the matrices, where a product and a sum would be two.
    return torch.baddbmm(kept.flatten(0, 1), *(each.flatten(0, 1) for each in added)).view_as(kept)


def delta_rows(matrix: Tensor, rows: HeadRows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply the gated delta rule to a few rows from ``matrix [B, H, Dk, Dv]``, all in float32.

    Returns the output ``[B, H, S, Dv]`` and what the rows add: keys ``[B, H, S, Dk]``, updates
    ``[B, H, S, Dv]`` and log decays ``[B, H, S]`` since the matrix.
    """
    query, key, value = _by_head(rows.query, rows.key, rows.value)
    log_decay, beta = _by_head(rows.log_decay, rows.beta)
    length, size = key.shape[2:]
    query, key = _unit(query) * size**-0.5, _unit(key)
    log_decays = log_decay.cumsum(2)
    decays, beta = log_decays.exp()[..., None], beta[..., None]
    # Keys and queries read together, because the matrix is large and they are few.
    both = torch.cat([key, query], dim=2)
    from_key, from_query = (both @ matrix).split(length, dim=2)
    key_key, query_key = (both @ key.transpose(2, 3)).split(length, dim=2)
    pairs = _pair_decays(log_decays)
    updates = _solve(key_key * pairs * beta, (value - from_key * decays) * beta)
    return from_query * decays + (query_key * pairs) @ updates, key, updates, log_decays


def _by_head(*rows: Tensor) -> list[Tensor]:
    """Return ``[B, S, H, ...]`` as ``[B, H, S, ...]`` in float32."""
    return [each.transpose(1, 2).float() for each in rows]


def _unit(rows: Tensor) -> Tensor:
    """Return rows of length one, with transformers' guard against zero."""
    return rows * torch.rsqrt((rows * rows).sum(-1, keepdim=True) + 1e-6)


def _pair_decays(log_decays: Tensor) -> Tensor:
    """Return the decay from row j to row i, ``[..., i, j]``. It is 0 if j comes after i."""
    difference = log_decays[..., :, None] - log_decays[..., None, :]
    length = log_decays.shape[-1]
    is_later = torch.ones(length, length, dtype=torch.bool, device=log_decays.device).triu(1)
    return difference.masked_fill(is_later, float("-inf")).exp()


def _solve(coupling: Tensor, right: Tensor) -> Tensor:
    """Return u with u_i = right_i - sum over j < i of coupling_ij u_j, row by row.

    It is a loop, because a library's triangular solve is made for larger and fewer matrices.
    """
    rows = [right[..., :1, :]]
    for i in range(1, right.shape[-2]):
        before = torch.cat(rows, dim=-2)
        rows.append(right[..., i : i + 1, :] - coupling[..., i : i + 1, :i] @ before)
    return torch.cat(rows, dim=-2)


def head_rows(rows: DeltaRows, inputs: Tensor) -> HeadRows:
    """Convolve ``rows`` and cut them into heads.

    ``inputs [B, before + S, C]`` are ``rows.mixed`` behind what the convolution sees before them.
    """
    net = rows.net
    mixed = _convolve(net, inputs)[:, inputs.shape[1] - rows.mixed.shape[1] :]
    key_dim = net.num_key_heads * net.key_size
    query, key, value = mixed.split([key_dim, key_dim, net.num_heads * net.value_size], dim=-1)
    group = net.num_heads // net.num_key_heads
    query, key = (
        each.unflatten(-1, (net.num_key_heads, net.key_size)).repeat_interleave(group, dim=2)
        for each in (query, key)
    )
    return HeadRows(
        query=query,
        key=key,
        value=value.unflatten(-1, (net.num_heads, net.value_size)),
        # In float32, because in half precision the exponent of A_log may overflow.
        log_decay=-net.a_log.float().exp() * F.softplus(rows.time_step.float() + net.dt_bias),
        beta=rows.rate.sigmoid(),
    )


def _convolve(net: DeltaNet, rows: Tensor) -> Tensor:
    """Apply the causal convolution and its activation to ``rows [B, S, C]``."""
    # Imported here, because only these models need it.
    from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn

    out: Tensor = causal_conv1d_fn(
        rows.transpose(1, 2), net.conv_weight, net.conv_bias, activation=net.activation
    )
    return out.transpose(1, 2)
