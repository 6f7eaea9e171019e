"""Poison what no real row may read (padded rows, stale KV), so that a read shows."""

from math import nan

from cgbench.checks.states import fill_states
from cgbench.engine.kv import KvCache
from cgbench.engine.state import DecodeState


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
        layer.keys.fill_(value)
        layer.values.fill_(value)


def fill_scratch(cache: KvCache, value: float) -> None:
    """Fill every KV row of the scratch slot, in every layer, and its recurrent state."""
    fill_states(cache.recurrent, value, cache.scratch_slot)
    first = cache.scratch_slot * cache.room
    for layer in cache.layers.values():
        for tensor in (layer.keys, layer.values):
            tensor[first : first + cache.room] = value
