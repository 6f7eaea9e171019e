"""What decode attention takes: a layer's new rows, and its cache."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerKv:
    """``keys [num_slots * room, kv_heads, D]`` and ``values [num_slots * room, kv_heads, Dv]``."""

    keys: Tensor
    values: Tensor


class AttentionInput(NamedTuple):
    """What one layer's attention is computed from, rotary applied.

    ``query [B, Hq, S, D]``, ``key [B, Hkv, S, D]``, ``value [B, Hkv, S, Dv]``. ``scaling``
    multiplies the scores; ``sliding_window`` counts the keys seen, the query's own included.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sliding_window: int | None

    @property
    def is_grouped(self) -> bool:
        """Whether query heads share key and value heads."""
        return self.query.shape[1] != self.key.shape[1]
