"""Define one verify of a gated delta net over slots in torch, and choose its kernel.

The kernel is ``triton_recurrent``. ``engine.recurrent`` has the derivation.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.gdn.delta_net import DeltaNet, DeltaRows, HeadRows, LayerState
from cgbench.kernels.gpu import runs_kernels

MOST_SIZE = 128
"""The kernel takes heads of keys and values of up to this size."""


def delta_rule(
    layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> Tensor:
    """Return what ``rows`` read of the state, normed and gated, ``[B, S, H, Dv]``.

    They are in ``slots [B]`` at ``positions [B, S]``. They read after the ``num_pending [B]`` kept
    rows before them. The layer keeps what each row adds. Where room gets short, the matrices take
    up the kept rows first.
    """
    if _has_kernel(rows):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels.gdn import triton_recurrent

        return triton_recurrent.delta_rule(layer, rows, slots, positions, num_pending)
    return delta_rule_by_torch(layer, rows, slots, positions, num_pending)


def _has_kernel(rows: DeltaRows) -> bool:
    """Return whether ``triton_recurrent`` has these rows' activation and sizes, those of the
    published models."""
    net = rows.net
    sizes = net.key_size, net.value_size
    return runs_kernels(rows.query.device) and net.activation == "silu" and max(sizes) <= MOST_SIZE


def delta_rule_by_torch(
    layer: LayerState, rows: DeltaRows, slots: Tensor, positions: Tensor, num_pending: Tensor
) -> Tensor:
    """Compute ``delta_rule`` in torch's operations, which define it."""
    num_before = rows.net.state_shape.conv_rows
    inputs = conv_inputs(layer.conv, rows.mixed, slots, positions, num_before)
    out = head_rule(layer, head_rows(rows, inputs), slots, positions, num_pending)
    return gated_norm(rows, out)


def gated_norm(rows: DeltaRows, out: Tensor) -> Tensor:
    """Return the norm of each head's ``out [B, S, H, Dv]``, multiplied by the gate.

    It rounds where transformers' module does.
    """
    net = rows.net
    wide, gate = out.float(), rows.gate.reshape(out.shape).float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + net.norm_epsilon)
    return (net.norm_weight * normed.to(out.dtype) * F.silu(gate)).to(out.dtype)


def take_up(length: Tensor, slots: Tensor, positions: Tensor, most: int) -> Tensor:
    """Return how many kept rows are pending before ``positions [B, S]``, ``[B]``, at most ``most``.

    ``length [slots]`` is the position of the matrices. It becomes that of the first row where the
    layers' ``delta_rule`` makes them take up what is pending. A padded row has the scratch slot,
    whose length means nothing. So the count is held inside the buffers.
    """
    if runs_kernels(length.device):
        from cgbench.kernels.gdn import triton_recurrent

        return triton_recurrent.take_up(length, slots, positions, most)
    begin, old = positions[:, 0], length[slots]
    count = (begin - old).clamp(0, most)
    length[slots] = torch.where(is_full(count, positions.shape[1], most), begin, old)
    return count


def is_full(num_pending: Tensor, query_len: int, most: int) -> Tensor:
    """Return where ``query_len`` more rows have no room, so that the matrices take up those
    before."""
    return num_pending + query_len > most


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
    begin, ring = positions[:, 0], layer.keys.shape[2]
    pending = pending_rows(layer, slots, begin - num_pending, num_pending)
    # Nothing came before a request's first row.
    old = layer.matrix[slots]
    matrix = advanced(old.masked_fill((begin == 0)[:, None, None, None], 0), pending)
    takes_up = is_full(num_pending, positions.shape[1], layer.most_pending)[:, None, None]
    layer.matrix[slots] = torch.where(takes_up[..., None], matrix, old)
    out, *added = delta_rows(matrix, rows)
    added[-1] = added[-1] + pending.total.masked_fill(takes_up, 0)
    for kept, new in zip((layer.keys, layer.updates, layer.log_decays), added, strict=True):
        # Places next to each other in an index come first in what it selects.
        kept[slots[:, None], :, positions % ring] = new.transpose(1, 2)
    return out.transpose(1, 2).to(rows.value.dtype)


class Pending(NamedTuple):
    """Pending rows are kept and accepted, and not yet in the matrices.

    ``keys [B, H, P, Dk]``, ``updates [B, H, P, Dv]`` and ``log_decays [B, H, P]`` are as in
    ``LayerState``, the oldest first. ``weights [B, H, P]`` are the decays since each. All are 0
    past a request's number. ``total [B, H, 1]`` is the last one's log decay.
    """

    keys: Tensor
    updates: Tensor
    log_decays: Tensor
    weights: Tensor
    total: Tensor


def pending_rows(layer: LayerState, slots: Tensor, first: Tensor, count: Tensor) -> Pending:
    """Return the ``count [B]`` rows of ``slots [B]`` that were kept from position ``first [B]`` on.

    What lies past them counts as 0. So a padded row computes the same whatever scratch holds. It
    must, because it may share an expert's matrix product with a request.
    """
    number = torch.arange(layer.most_pending, device=slots.device)
    places = (first[:, None] + number) % layer.keys.shape[2]
    is_past = (number >= count[:, None])[:, None]
    keys, updates, log_decays = (
        kept[slots[:, None], :, places].transpose(1, 2)
        for kept in (layer.keys, layer.updates, layer.log_decays)
    )
    log_decays = log_decays.masked_fill(is_past, 0)
    last = (count - 1).clamp(min=0)[:, None, None].expand(-1, log_decays.shape[1], 1)
    total = log_decays.gather(2, last)
    # Masked before exp, because past ``count`` the difference is positive and may overflow.
    weights = (total - log_decays).masked_fill(is_past, float("-inf")).exp()
    keys, updates = (each.masked_fill(is_past[..., None], 0) for each in (keys, updates))
    return Pending(keys, updates, log_decays, weights, total)


def advanced(matrix: Tensor, pending: Pending) -> Tensor:
    """Return ``matrix [B, H, Dk, Dv]`` after the pending rows.

    Without any the matrix has weight 1 exactly.
    """
    weighted = pending.keys * pending.weights[..., None]
    kept = matrix * pending.total.exp()[..., None]
    added = weighted.transpose(2, 3), pending.updates
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
    rate, time_step = rows.rate.flatten(2), rows.time_step.flatten(2)
    mixed = _convolve(net, inputs)[:, inputs.shape[1] - rows.num_tokens[1] :]
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
        log_decay=-net.a_log.float().exp() * F.softplus(time_step.float() + net.dt_bias),
        beta=rate.sigmoid(),
    )


def _convolve(net: DeltaNet, rows: Tensor) -> Tensor:
    """Apply the causal convolution and its activation to ``rows [B, S, C]``."""
    # Imported here, because only these models need it.
    from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn

    out: Tensor = causal_conv1d_fn(
        rows.transpose(1, 2), net.conv_weight, net.conv_bias, activation=net.activation
    )
    return out.transpose(1, 2)
