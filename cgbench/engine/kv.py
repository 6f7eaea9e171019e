"""The KV cache has one slot a request, and one tensor a layer for keys and one for values. A layer
that keeps latents has them and their rotary keys for keys, and no values of its own. Beside it
lies the recurrent state of a hybrid's other layers, in the same slots.
"""

from collections.abc import Mapping

import torch

from cgbench.engine.recurrent import RecurrentCache
from cgbench.kernels.attention import LayerKv
from cgbench.kernels.delta_rule import StateShape
from cgbench.models.attention_hook import KvShape, is_latent


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
        state_shapes: Mapping[int, StateShape] | None = None,
        query_len: int = 1,
    ) -> None:
        """``state_shapes``: the linear-attention layers'; ``query_len``: the most rows that one of
        their verifies has."""
        self.recurrent: RecurrentCache | None = None
        if state_shapes:
            self.recurrent = RecurrentCache(
                state_shapes,
                max_batch_size=max_batch_size,
                query_len=query_len,
                dtype=dtype,
                device=device,
            )
        self.room = room
        self.num_slots = max_batch_size + 1
        self.scratch_slot = max_batch_size
        self.request_keys = torch.zeros(self.num_slots, dtype=torch.long, device=device)
        """Which request each slot's is, for what is drawn by request: balanced routing."""
        self.keeps_latents = any(map(is_latent, shapes.values()))
        """Whether layers of latent attention keep latents."""
        num_rows = self.num_slots * room
        self.layers = {
            layer_idx: LayerKv(
                torch.zeros(num_rows, *key_shape, dtype=dtype, device=device),
                torch.zeros(num_rows, *value_shape, dtype=dtype, device=device),
            )
            for layer_idx, (key_shape, value_shape) in shapes.items()
        }

    @property
    def num_bytes(self) -> int:
        """Keys and values of all slots, the scratch slot among them."""
        return sum(kv.keys.nbytes + kv.values.nbytes for kv in self.layers.values())
