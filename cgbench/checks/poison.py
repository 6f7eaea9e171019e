"""Poison what no real row may read (padded rows, stale KV), so that a read shows."""

from math import nan

import torch
from torch import Tensor

from cgbench.checks.states import fill_states
from cgbench.engine.kv import KvCache
from cgbench.engine.state import DecodeState
from cgbench.kernels.fp8.block_scales import FP8, LARGEST


def fill(tensor: Tensor, value: float, mask: Tensor | None = None) -> None:
    """Fill a tensor of KV, or what ``mask`` marks of it. FP8 takes the nearest number it has."""
    if tensor.dtype == FP8:
        stored = torch.tensor(value).clamp(-LARGEST, LARGEST).to(FP8).view(torch.uint8)
        tensor, value = tensor.view(torch.uint8), stored.item()
    if mask is None:
        tensor.fill_(value)
    else:
        tensor.masked_fill_(mask, value)


def poison_rows(state: DecodeState, padded: slice, last_token: int) -> None:
    """Fill padded rows with the vocabulary's last token, and their hidden states with NaN.

    What the scratch slot's modules are fed is NaN too.
    """
    full = state.full
    full.carries[:, state.scratch_slot] = nan
    for tokens in (full.last, full.drafts):
        tokens[padded] = last_token
    for states in (full.hidden, full.chain, full.fed):
        states[padded] = nan


def fill_cache(cache: KvCache, value: float) -> None:
    """Fill every KV row of every layer and slot, and every recurrent state."""
    fill_states(cache.recurrent, value)
    for layer in cache.layers.values():
        for tensor in layer.of_slots(cache.num_slots).values():
            fill(tensor, value)


def fill_scratch(cache: KvCache, value: float) -> None:
    """Fill every KV row of the scratch slot, in every layer, and its recurrent state."""
    fill_states(cache.recurrent, value, cache.scratch_slot)
    for layer in cache.layers.values():
        for tensor in layer.of_slots(cache.num_slots).values():
            fill(tensor[cache.scratch_slot], value)
