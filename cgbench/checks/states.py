"""Copy, compare and poison recurrent state between two steps, as ``steps`` does for KV."""

import torch
from torch import Tensor

from cgbench.checks.subject import Subject
from cgbench.engine.recurrent import RecurrentCache
from cgbench.kernels.gdn.delta_net import LayerState
from cgbench.kernels.row_updates import RowState

# As many recurrent layers are watched as KV layers (``steps``).
WATCHED_LAYERS = 4

States = dict[tuple[int, str], Tensor]
"""Copies of the watched layers' buffers, ``[slots, ...]``, by layer and name."""


def fill_states(cache: RecurrentCache | None, value: float, first_slot: int = 0) -> None:
    """Fill everything that the slots from ``first_slot`` on hold, the prompts' states too."""
    if cache is None:
        return
    tensors = [tensor for layer in cache.layers.values() for tensor in layer.tensors().values()]
    tensors += [tensor for pair in cache.prompt.values() for tensor in pair]
    for tensor in tensors:
        tensor[first_slot:] = value


def fill_unread(cache: RecurrentCache | None, rows: RowState, value: float) -> None:
    """Fill what the rows' slots keep of verified rows that were not accepted."""
    if cache is None:
        return
    for layer in cache.layers.values():
        _fill_kept(cache, layer, rows, value)
        _fill_ring(cache, layer, rows, value)


def _fill_kept(cache: RecurrentCache, layer: LayerState, rows: RowState, value: float) -> None:
    """Fill all of the ring's rows but those from the matrices' length to seq_len."""
    slots, begin = rows.slot_of_row, cache.length[rows.slot_of_row]
    past = torch.arange(layer.keys.shape[2], device=slots.device)
    places = (begin[:, None] + past) % layer.keys.shape[2]
    is_unread = past >= (rows.seq_len - begin)[:, None]
    for tensor in (layer.keys, layer.updates, layer.log_decays):
        # Places next to each other in an index come first in what it selects.
        kept = tensor[slots[:, None], :, places]
        kept[is_unread] = value
        tensor[slots[:, None], :, places] = kept


def _fill_ring(cache: RecurrentCache, layer: LayerState, rows: RowState, value: float) -> None:
    """Fill the ring's rows from seq_len on, because verify writes there before it reads."""
    past = torch.arange(cache.query_len, device=rows.seq_len.device)
    index = (rows.seq_len[:, None] + past) % layer.conv.shape[1]
    layer.conv[rows.slot_of_row[:, None], index] = value


def copy_states(subject: Subject, *, with_rings: bool = False) -> States:
    """Return copies of the first few layers' matrices and of the last layer's.

    ``with_rings``: their rings too, in which rows that were not accepted may hold anything.
    """
    cache = subject.spec.cache.recurrent
    if cache is None:
        return {}
    layers = sorted(cache.layers)
    watched = {*layers[: WATCHED_LAYERS - 1], layers[-1]}
    return {
        (layer_idx, name): tensor.clone()
        for layer_idx in watched
        for name, tensor in cache.layers[layer_idx].tensors().items()
        if with_rings or name == "matrix"
    }


def unequal_state(subject: Subject, before: States, watched: Tensor) -> tuple[int, int] | None:
    """Return the first (layer, slot) among ``watched [slots]`` that is not as in ``before``, or
    None. A NaN, which no state may hold, equals nothing.
    """
    cache = subject.spec.cache.recurrent
    for (layer_idx, name), old in before.items():
        assert cache is not None
        new: Tensor = getattr(cache.layers[layer_idx], name)
        changed = (new != old).flatten(1).any(1) & watched
        if changed.any():
            return layer_idx, int(changed.nonzero()[0, 0])
    return None
