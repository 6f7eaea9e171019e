"""The KV cache: one slot a request, one tensor a layer for keys and one for values."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cgbench.models.attention_hook import KvShape


@dataclass(frozen=True, slots=True)
class LayerKv:
    """``keys [num_slots * room, kv_heads, D]`` and ``values [num_slots * room, kv_heads, Dv]``."""

    keys: Tensor
    values: Tensor


class KvCache:
    """Slots of ``room`` rows each; the last slot is scratch, for padded rows to write to.

    One tensor a layer: an in-place write on a view of one large tensor makes Inductor copy the
    whole of it at every layer.
    """

    def __init__(
        self,
        shapes: Mapping[int, KvShape],
        *,
        max_batch_size: int,
        room: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.room = room
        self.num_slots = max_batch_size + 1
        self.scratch_slot = max_batch_size
        num_rows = self.num_slots * room
        self.layers = {
            layer_idx: LayerKv(
                torch.zeros(num_rows, *key_shape, dtype=dtype, device=device),
                torch.zeros(num_rows, *value_shape, dtype=dtype, device=device),
            )
            for layer_idx, (key_shape, value_shape) in shapes.items()
        }
