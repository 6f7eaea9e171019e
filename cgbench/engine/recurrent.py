"""Recurrent state of linear-attention layers: one slot a request, rolled back by length alone.

A key written past the accepted row is harmless: nothing reads it, and the next iteration overwrites
it. A recurrent state has no rows to leave unread. Here it gets them: verify leaves the state at
the committed length that it began from, and keeps of each of its k + 1 rows what the row adds to
the state. The next verify, which knows how many rows were accepted, adds those first, with weight
zero for the others. So the state is a function of (slot, seq_len), as KV is: verify may be run
twice from one length, and re-packing moves nothing. Keeping the state after every row instead
would take (k + 1) times its bytes; a row's part of it is smaller by about half the head's size.

The gated delta rule, per head (Yang et al., Gated Delta Networks, 2024; transformers'
``torch_recurrent_gated_delta_rule``): S_t = d_t S_(t-1) + k_t u_t with
u_t = beta_t (v_t - k_t d_t S_(t-1)), and the output q_t S_t. With S the state before the rows and
D_t the product of the decays up to row t, S_t = D_t S + sum over j <= t of (D_t / D_j) k_j u_j: S
is read once for all rows, and (k_j, u_j, log D_j) are what is kept of row j.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from cgbench.early_launch import runs_kernels
from cgbench.models.recurrent_hook import (
    DeltaRows,
    HeadRows,
    StateShape,
    chunked_delta_rule,
    head_rows,
)


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


class RecurrentCache:
    """The state of every linear-attention layer; the last slot is scratch, as in the KV cache.

    ``length [slots]``: committed tokens that the matrices hold. ``prompt`` is a second matrix and
    ring a layer, with the state after the prompt, so that decoding can begin there again; a
    server would not hold it.
    """

    def __init__(
        self,
        shapes: Mapping[int, StateShape],
        *,
        max_batch_size: int,
        query_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """``query_len``: k + 1 of the largest k."""
        num_slots = max_batch_size + 1
        self.scratch_slot = max_batch_size
        self.query_len = query_len
        self.length = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.prompt_length = torch.zeros_like(self.length)
        self.layers = {
            layer_idx: LayerState.zeros(shape, num_slots, query_len, dtype, device)
            for layer_idx, shape in shapes.items()
        }
        self.prompt = {
            layer_idx: (torch.zeros_like(layer.matrix), torch.zeros_like(layer.conv))
            for layer_idx, layer in self.layers.items()
        }

    def begin(self, batch_size: int) -> None:
        """Put slots 0..batch_size - 1 back to where their prefill left them."""
        self.length[:batch_size] = self.prompt_length[:batch_size]
        for layer_idx, layer in self.layers.items():
            matrix, conv = self.prompt[layer_idx]
            layer.matrix[:batch_size] = matrix[:batch_size]
            layer.conv[:batch_size] = conv[:batch_size]

    def tensors(self) -> dict[str, Tensor]:
        """Every buffer that decoding reads or writes, by a name that tells layer and part."""
        named = {
            f"{layer_idx}.{name}": tensor
            for layer_idx, layer in self.layers.items()
            for name, tensor in layer.tensors().items()
        }
        return {"length": self.length, **named}


def cache_bytes(
    shapes: Mapping[int, StateShape], num_slots: int, query_len: int, dtype: torch.dtype
) -> int:
    """Bytes that a ``RecurrentCache`` takes, but for its lengths."""
    return num_slots * sum(
        2 * shape.num_bytes(dtype.itemsize)
        + query_len * (shape.row_bytes(dtype) + shape.conv_channels * dtype.itemsize)
        for shape in shapes.values()
    )


class DecodeStates:
    """One verify's rows in the cache: ``slots [B]``, ``positions [B, S]``, consecutive.

    Made once a forward. Every layer's matrix is brought to ``positions[:, 0]`` as the layer is
    met, by the rows that the verify before it left and that were accepted since.
    """

    def __init__(self, cache: RecurrentCache, slots: Tensor, positions: Tensor) -> None:
        self.cache, self.slots, self.positions = cache, slots, positions
        begin = positions[:, 0]
        self.is_first = begin == 0
        self.num_pending = num_pending(cache, slots, begin)
        cache.length[slots] = begin

    def conv_inputs(self, layer_idx: int, rows: Tensor, num_before: int) -> Tensor:
        """``rows [B, S, C]`` behind the ring's ``num_before`` newest; they enter the ring."""
        ring = self.cache.layers[layer_idx].conv
        newest = self.positions[:, :1] + torch.arange(-num_before, 0, device=rows.device)
        slots = self.slots[:, None]
        before = ring[slots, newest % ring.shape[1]].masked_fill((newest < 0)[..., None], 0)
        ring[slots, self.positions % ring.shape[1]] = rows
        return torch.cat([before, rows], dim=1)

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """What ``rows`` read, ``[B, S, H, Dv]``; leaves the state before them, and their parts."""
        if _has_kernel(rows):
            from cgbench.engine.triton_recurrent import delta_rule

            return delta_rule(self.cache.layers[layer_idx], self, rows)
        return self.delta_rule_by_torch(layer_idx, rows)

    def delta_rule_by_torch(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """``delta_rule``, as it is defined."""
        inputs = self.conv_inputs(layer_idx, rows.mixed, rows.net.state_shape.conv_rows)
        return self.head_rule(layer_idx, head_rows(rows, inputs))

    def head_rule(self, layer_idx: int, rows: HeadRows) -> Tensor:
        """``delta_rule`` behind the convolution."""
        layer = self.cache.layers[layer_idx]
        matrix = advanced(layer, self.slots, self.num_pending, self.is_first)
        layer.matrix[self.slots] = matrix
        out, keys, updates, log_decays = delta_rows(matrix, rows)
        length = keys.shape[2]
        layer.keys[self.slots, :, :length] = keys
        layer.updates[self.slots, :, :length] = updates
        layer.log_decays[self.slots, :, :length] = log_decays
        return out.transpose(1, 2).to(rows.value.dtype)


def _has_kernel(rows: DeltaRows) -> bool:
    """``triton_recurrent`` knows the activation of the published models, and no other."""
    return runs_kernels(rows.mixed.device) and rows.net.activation == "silu"


def num_pending(cache: RecurrentCache, slots: Tensor, begin: Tensor) -> Tensor:
    """``[B]``: how many of the rows that the last verify left lie before position ``begin [B]``.

    A padded row has the scratch slot, whose length means nothing: it is held inside the buffers.
    """
    return (begin - cache.length[slots]).clamp(0, cache.query_len)


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


@dataclass(frozen=True, slots=True)
class PrefillStates:
    """Whole prompts into the cache's prompt state: ``slots [B]``, ``lengths [B]``, right-padded."""

    cache: RecurrentCache
    slots: Tensor
    lengths: Tensor

    def conv_inputs(self, layer_idx: int, rows: Tensor, num_before: int) -> Tensor:
        """``rows [B, S, C]`` behind zeros; those before each prompt's end enter the ring."""
        ring = self.cache.prompt[layer_idx][1]
        inputs = torch.nn.functional.pad(rows, (0, 0, num_before, 0))
        # Of ``inputs``, row p + num_before is position p: one before the prompt is zero.
        newest = self.lengths[:, None] + torch.arange(num_before, device=rows.device)
        tail = inputs.gather(1, newest[..., None].expand(-1, -1, rows.shape[2]))
        ring[self.slots[:, None], (newest - num_before) % ring.shape[1]] = tail
        return inputs

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """What the prompts' rows read, ``[B, S, H, Dv]``; padding leaves the state as it is."""
        inputs = self.conv_inputs(layer_idx, rows.mixed, rows.net.state_shape.conv_rows)
        heads = head_rows(rows, inputs)
        positions = torch.arange(rows.mixed.shape[1], device=self.slots.device)
        is_prompt = (positions < self.lengths[:, None])[..., None]
        masked = replace(heads, log_decay=heads.log_decay * is_prompt, beta=heads.beta * is_prompt)
        out, matrix = chunked_delta_rule(masked)
        self.cache.prompt[layer_idx][0][self.slots] = matrix
        self.cache.prompt_length[self.slots] = self.lengths
        return out
