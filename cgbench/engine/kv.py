"""The KV cache has one slot a request, and one tensor a layer for keys and one for values.

A layer that keeps latents has them and their rotary keys for keys, and no values of its own. FP8
keys and values have scales beside them. The
recurrent state of a hybrid's other layers lies beside it, in the same slots.
"""

from collections.abc import Mapping

import torch

from cgbench.engine.recurrent import RecurrentCache
from cgbench.kernels.attention import LayerKv
from cgbench.kernels.fp8.block_scales import FP8
from cgbench.kernels.fp8.kv_values import KvScales
from cgbench.kernels.gdn.delta_net import StateShape
from cgbench.models.attention_hook import KvShape, is_latent
from cgbench.models.quantised.kv_format import PLAIN, KvFormat


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
        kv_format: KvFormat = PLAIN,
    ) -> None:
        """Allocate the slots, all zero.

        ``state_shapes`` are those of the linear-attention layers. ``query_len`` is the most rows
        that one of their verifies has. ``kv_format``: keys and values may be in FP8. ``dtype`` is
        the model's.
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
        self.keeps_latents = any(map(is_latent, shapes.values()))
        """Whether layers of latent attention keep latents."""
        self.kv_format = kv_format
        num_rows = self.num_slots * room
        stored = FP8 if kv_format.is_fp8 else dtype
        self.layers = {
            layer_idx: LayerKv(
                torch.zeros(num_rows, *key_shape, dtype=stored, device=device),
                torch.zeros(num_rows, *value_shape, dtype=stored, device=device),
                self._scales(layer_idx, key_shape[0], device),
            )
            for layer_idx, (key_shape, value_shape) in shapes.items()
        }

    def _scales(self, layer_idx: int, heads: int, device: torch.device) -> KvScales | None:
        if not self.kv_format.is_fp8:
            return None
        if not self.kv_format.has_row_scales(layer_idx):
            of_keys, of_values = self.kv_format.stated[layer_idx]
            return KvScales(*(torch.tensor([s], device=device) for s in (of_keys, of_values)))
        shape = self.num_slots, heads, self.room
        return KvScales(torch.zeros(shape, device=device), torch.zeros(shape, device=device))

    @property
    def num_bytes(self) -> int:
        """Return the bytes of keys and values of all slots, the scratch slot among them.

        The scales of FP8 ones are included.
        """
        tensors = (each for kv in self.layers.values() for each in kv.tensors().values())
        return sum(tensor.nbytes for tensor in tensors)
