"""The gated delta rule over slots, in torch: the definition of ``triton_recurrent``.

``engine.recurrent`` has the derivation."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from cgbench.kernels.delta_net import HeadRows, StateShape


@dataclass(frozen=True, slots=True)
class LayerState:
    """One layer's buffers, by slot.

    ``matrix [slots, H, Dk, Dv]`` float32, at the length that the cache's ``length`` says.
    ``conv [slots, ring, C]``: the convolution's newest inputs, that of position p in row p modulo
    ring; a ring of k + 1 rows more than the kernel sees, so that no row that may still be read is
    written over. ``keys [slots, H, k + 1, Dk]``, ``updates [slots, H, k + 1, Dv]`` and
    ``log_decays [slots, H, k + 1]`` float32: what verify's rows add to the matrix.
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
        heads, ring = (num_slots, shape.num_heads), shape.conv_rows + query_len
        return cls(
            matrix=torch.zeros(*heads, shape.key_size, shape.value_size, device=device),
            conv=torch.zeros(num_slots, ring, shape.conv_channels, dtype=dtype, device=device),
            keys=torch.zeros(*heads, query_len, shape.key_size, device=device),
            updates=torch.zeros(*heads, query_len, shape.value_size, device=device),
            log_decays=torch.zeros(*heads, query_len, device=device),
        )

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def advanced(layer: LayerState, slots: Tensor, count: Tensor, is_first: Tensor) -> Tensor:
    """The matrices ``[B, H, Dk, Dv]`` of ``slots`` after the first ``count [B]`` kept rows.

    A row past ``count`` has weight 0, and where count is 0 the old matrix weight 1: exactly. Where
    ``is_first [B]`` nothing came before: a padded row, which must compute the same whatever
    scratch holds, for it may share an expert's matrix product with a request.
    """
    log_decays = layer.log_decays[slots]
    last = (count - 1).clamp(min=0)[:, None, None].expand(-1, log_decays.shape[1], 1)
    total = log_decays.gather(2, last) * (count > 0)[:, None, None]
    is_past = torch.arange(log_decays.shape[2], device=slots.device) >= count[:, None]
    # Masked before exp: past ``count`` the difference is positive, and may overflow.
    weights = (total - log_decays).masked_fill(is_past[:, None], float("-inf")).exp()
    weighted = layer.keys[slots] * weights[..., None]
    weight = total.exp().masked_fill(is_first[:, None, None], 0)
    kept = layer.matrix[slots] * weight[..., None]
    added = weighted.transpose(2, 3), layer.updates[slots]
    # One kernel over the matrices, where a product and a sum would be two.
    return torch.baddbmm(kept.flatten(0, 1), *(each.flatten(0, 1) for each in added)).view_as(kept)


def delta_rows(matrix: Tensor, rows: HeadRows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gated delta rule over a few rows from ``matrix [B, H, Dk, Dv]``, all in float32.

    Returns the output ``[B, H, S, Dv]`` and what the rows add: keys ``[B, H, S, Dk]``, updates
    ``[B, H, S, Dv]`` and log decays ``[B, H, S]`` since the matrix.
    """
    query, key, value = _by_head(rows.query, rows.key, rows.value)
    log_decay, beta = _by_head(rows.log_decay, rows.beta)
    length, size = key.shape[2:]
    query, key = _unit(query) * size**-0.5, _unit(key)
    log_decays = log_decay.cumsum(2)
    decays, beta = log_decays.exp()[..., None], beta[..., None]
    # Keys and queries read together: the matrix is large and they are few.
    both = torch.cat([key, query], dim=2)
    from_key, from_query = (both @ matrix).split(length, dim=2)
    key_key, query_key = (both @ key.transpose(2, 3)).split(length, dim=2)
    pairs = _pair_decays(log_decays)
    updates = _solve(key_key * pairs * beta, (value - from_key * decays) * beta)
    return from_query * decays + (query_key * pairs) @ updates, key, updates, log_decays


def _by_head(*rows: Tensor) -> list[Tensor]:
    """``[B, S, H, ...]`` as ``[B, H, S, ...]`` in float32."""
    return [each.transpose(1, 2).float() for each in rows]


def _unit(rows: Tensor) -> Tensor:
    """Rows of length one, with transformers' guard against zero."""
    return rows * torch.rsqrt((rows * rows).sum(-1, keepdim=True) + 1e-6)


def _pair_decays(log_decays: Tensor) -> Tensor:
    """``[..., i, j]``: the decay from row j to row i, 0 where j comes after i."""
    difference = log_decays[..., :, None] - log_decays[..., None, :]
    length = log_decays.shape[-1]
    is_later = torch.ones(length, length, dtype=torch.bool, device=log_decays.device).triu(1)
    return difference.masked_fill(is_later, float("-inf")).exp()


def _solve(coupling: Tensor, right: Tensor) -> Tensor:
    """u with u_i = right_i - sum over j < i of coupling_ij u_j, row by row. In a loop: a library's
    triangular solve is made for matrices that are larger and fewer."""
    rows = [right[..., :1, :]]
    for i in range(1, right.shape[-2]):
        before = torch.cat(rows, dim=-2)
        rows.append(right[..., i : i + 1, :] - coupling[..., i : i + 1, :i] @ before)
    return torch.cat(rows, dim=-2)
