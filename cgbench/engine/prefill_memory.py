"""Count the least memory that a prefill takes beside weights and KV, on the meta device."""

import weakref
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cgbench.kernels.attention import AttentionInput
from cgbench.models.recurrent_hook import RecurrentProbe
from cgbench.models.target import Target


class _PrefillProbe(RecurrentProbe):
    """This probe allocates what ``calls.Prefill`` allocates for a layer's attention, and no
    more."""

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        qkv.key.transpose(1, 2).flatten(0, 1)
        qkv.value.transpose(1, 2).flatten(0, 1)
        batch, num_heads, length, _ = qkv.query.shape
        return qkv.query.new_empty(batch, length, num_heads, qkv.value.shape[3])


class PeakMemory(TorchDispatchMode):
    """This context counts the bytes of tensors that operations make inside it, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes: int = 0
        self._bytes = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {
            each.untyped_storage()._cdata
            for each in tree_iter((args, kwargs))
            if isinstance(each, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in given:
                self._note(each.untyped_storage())
        return result

    def _note(self, storage: UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._bytes -= size


@torch.no_grad()
def prefill_bytes(target: Target, batch_size: int, prompt_len: int) -> int:
    """Return the peak bytes of one wave of ``batch_size`` prompts through ``target``.

    ``target`` is on the meta device, and its layers run as in a real prefill. The peak is a lower
    bound. A kernel's own workspace is not counted, and a skeleton is in bfloat16.
    """
    memory = PeakMemory()
    with memory, torch.device("meta"):
        ids = torch.zeros(batch_size, prompt_len, dtype=torch.long)
        target.forward(ids, ids, _PrefillProbe())
    return memory.peak_bytes
