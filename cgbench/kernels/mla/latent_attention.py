"""This is decode attention over cached latents, in torch: the definition of ``triton_latent``.

All heads share one key a token: the latent and its rotary key side by side. The latent itself is
the value. So a request's latents are read once, whatever its heads and queries.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels.attention import Masks, live_mask, slot_view, write_rows
from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.mla.latent_rows import PairRotary, rotate_pairs
from cgbench.kernels.mla.latent_weights import LatentWeights


class LatentInput(NamedTuple):
    """A ``LatentInput`` holds what one layer's latent attention is computed from.

    ``query`` is ``[B, H, S, key_size + R]``, and its last R columns are rotary. ``latent`` is
    ``[B, 1, S, rank + R]``, likewise. ``scaling`` multiplies the scores.
    ``sliding_window`` counts the keys seen, the query's own included.
    """

    query: Tensor
    latent: Tensor
    weights: LatentWeights
    scaling: float
    sliding_window: int | None
    pairs: PairRotary | None = None
    """What rotates the query's rotary columns, where they are as projected."""

    @property
    def no_rotary(self) -> Tensor:
        """Return the query without its rotary part, ``[B, H, S, key_size]``."""
        return self.query[..., : self.weights.key_size]

    @property
    def rotary(self) -> Tensor:
        """Return the query's rotary part, ``[B, H, S, R]``, rotated."""
        plain = self.plain_rotary
        return plain if self.pairs is None else rotate_pairs(plain, self.pairs)

    @property
    def plain_rotary(self) -> Tensor:
        """Return the query's rotary part as it came, ``[B, H, S, R]``."""
        return self.query[..., self.weights.key_size :]


def absorb(query: Tensor, weights: LatentWeights) -> Tensor:
    """Multiply ``query [B, H, S, key_size]`` by W_UK, to ``[B, H, S, rank]``."""
    dtype = weights.working_dtype(query)
    key_half = weights.by_head(dtype)[:, : weights.key_size]
    return _by_head(query, key_half, dtype)


def project(attended: Tensor, weights: LatentWeights) -> Tensor:
    """Multiply ``attended [B, H, S, rank]`` by W_UV, to ``[B, H, S, value_size]``."""
    dtype = weights.working_dtype(attended)
    value_half = weights.by_head(dtype)[:, weights.key_size :]
    return _by_head(attended, value_half.transpose(1, 2), dtype)


def _by_head(x: Tensor, matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply ``x [B, H, S, K]`` by each head's ``[K, N]``, in one product a head.

    A product a request and head would read the weights once for each request.
    """
    batch, num_heads, length, _ = x.shape
    rows = x.transpose(0, 1).reshape(num_heads, batch * length, -1)
    out = torch.bmm(rows.to(dtype), matrices).to(x.dtype)
    return out.view(num_heads, batch, length, -1).transpose(0, 1)


def attend(
    latents: Tensor,
    absorbed: Tensor,
    rotary: Tensor,
    scaling: float,
    slots: Tensor,
    positions: Tensor,
    room: int,
    masks: Masks | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attend over each slot's latents 0..position, to ``[B, H, S, rank]``.

    ``latents [num_slots * room, 1, rank + R]`` hold the new rows already. ``absorbed
    [B, H, S, rank]`` and ``rotary [B, H, S, R]`` are the two parts of the query. ``slots [B]``,
    ``positions [B, S]``. The whole room is read, masked. Layers of one forward may share ``masks``.
    """
    masks = {} if masks is None else masks
    if sliding_window not in masks:
        masks[sliding_window] = live_mask(positions, room, sliding_window)
    batch, num_heads, length, rank = absorbed.shape
    # Heads are rows of one query: repeating the latents for each would take H times their memory.
    query = torch.cat([absorbed, rotary], dim=-1).view(batch, 1, num_heads * length, -1)
    mask = masks[sliding_window][:, :, None].expand(-1, -1, num_heads, -1, -1)
    keys = slot_view(latents, slots, room)
    out = F.scaled_dot_product_attention(
        query,
        keys,
        keys[..., :rank],
        attn_mask=mask.reshape(batch, 1, num_heads * length, room),
        scale=scaling,
    )
    return out.view(batch, num_heads, length, rank)


def decode_by_torch(
    latents: Tensor,
    new: LatentInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    masks: Masks | None = None,
) -> Tensor:
    """Store the new latents, and attend by the definition, to ``[B, S, H, value_size]``."""
    rows = (slots[:, None] * room + positions).view(-1)
    write_rows(latents, rows, new.latent)
    absorbed = absorb(new.no_rotary, new.weights)
    places = slots, positions, room
    attended = attend(
        latents, absorbed, new.rotary, new.scaling, *places, masks, new.sliding_window
    )
    return project(attended, new.weights).transpose(1, 2)


def decode(
    latents: Tensor,
    new: LatentInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    masks: Masks | None = None,
) -> Tensor:
    """Store the new latents, and attend over each slot's rows 0..position.

    ``latents [num_slots * room, 1, rank + R]`` is the layer's cache. ``slots [B]`` of ``room``
    rows each, ``positions [B, S]``, consecutive in each row. Return ``[B, S, H, value_size]``.
    """
    if new.sliding_window is None and has_kernels(new.weights):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels.mla import triton_latent

        return triton_latent.decode(latents, new, slots, positions, room)
    return decode_by_torch(latents, new, slots, positions, room, masks)


def has_kernels(weights: LatentWeights) -> bool:
    """Return whether the kernels multiply by ``weights``, where they lie.

    They read an FP8 weight's stored bytes. If they cannot, as with a scale for every channel, its
    values are made anew in each call.
    """
    if not runs_kernels(weights.weight.device):
        return False
    from cgbench.kernels.mla import triton_heads

    return triton_heads.can_multiply(weights)
