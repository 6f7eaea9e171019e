"""The KV cache has one slot a request, and one tensor a layer for keys and one for values.

The recurrent state of a hybrid's other layers lies beside it, in the same slots.
"""

from collections.abc import Mapping

import torch

from cgbench.engine.recurrent import RecurrentCache
from cgbench.kernels.attention import LayerKv
from cgbench.kernels.delta_rule import StateShape
from cgbench.models.attention_hook import KvShape


class KvCache:
    """A KV cache holds slots of ``room`` rows each.

    The last slot is scratch, where padded rows write. Each layer has tensors of its own. An
    in-place write on a view of one large tensor makes Inductor copy all of it at every layer.
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
        """Allocate the slots, all zero.

        ``state_shapes`` are those of the linear-attention layers. ``query_len`` is the most rows
        that one of their verifies has.
        """
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
        """This is the request that each slot belongs to. Balanced routing draws experts by
        request."""
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
        """Return the bytes of keys and values of all slots, the scratch slot among them."""
        return sum(kv.keys.nbytes + kv.values.nbytes for kv in self.layers.values())
