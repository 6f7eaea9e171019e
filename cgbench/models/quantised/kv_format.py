"""State how a deployment keeps keys and values: in the model's dtype, or in FP8 with scales."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cgbench.errors import ModelError
from cgbench.models.attention_hook import KvShape
from cgbench.models.checkpoint import read_tensor

SCALE_BYTES = 2 * torch.float32.itemsize
"""The scales of one head's key and value of one token."""

# As vLLM, SGLang and llm-compressor name the scales of keys and values.
_STATED = re.compile(r"\blayers\.(\d+)\.self_attn\.(?:attn\.|[kv]_proj\.)?([kv])_scale$")


@dataclass(frozen=True, slots=True)
class KvFormat:
    """A KV format states how each attention layer keeps its keys and values.

    ``stated`` are the scales of a layer's keys and of its values, by layer, as the checkpoint has
    them. FP8 keys and values of other layers have a scale for each head and token.
    """

    is_fp8: bool = False
    stated: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def words(self, dtype: str) -> str:
        """Return the format in words. ``dtype`` is the model's."""
        if not self.is_fp8:
            return dtype
        own = "with a scale for each head and token"
        if not self.stated:
            return f"FP8 (e4m3) {own}"
        return f"FP8 (e4m3), {len(self.stated)} layers with the checkpoint's scales, others {own}"

    def has_row_scales(self, layer_idx: int) -> bool:
        """Return whether each head and token of a layer has scales of its own."""
        return self.is_fp8 and layer_idx not in self.stated

    def bytes_per_token(self, layer_idx: int, shape: KvShape, dtype: torch.dtype) -> int:
        """Return the bytes that a layer of ``shape`` keeps of one token, scales included."""
        (heads, key_size), (_, value_size) = shape
        elements = heads * (key_size + value_size)
        if not self.is_fp8:
            return elements * dtype.itemsize
        return elements + (heads * SCALE_BYTES if self.has_row_scales(layer_idx) else 0)


PLAIN = KvFormat()
"""Keys and values are in the model's dtype."""


def is_kv_scale(name: str) -> bool:
    """Return whether a tensor of that name is the scale of a layer's keys or values."""
    return _STATED.search(name) is not None


def stated_scales(
    where: str, paths: Mapping[str, Path], layers: Iterable[int]
) -> dict[int, tuple[float, float]]:
    """Return the scales that the checkpoint ``where`` states for keys and values, by layer.

    ``paths`` are the files of its tensors by name, and ``layers`` the target's attention layers.
    Raise ``ModelError`` for a scale that is not one finite number above zero. Raise it too for a
    layer that has one of keys or one of values alone.
    """
    found: dict[int, dict[str, float]] = {}
    attending = {*layers}
    for name, path in sorted(paths.items()):
        match = _STATED.search(name)
        if match is None or int(match[1]) not in attending:
            continue
        found.setdefault(int(match[1]), {})[match[2]] = _read(path, name)
    for layer, pair in found.items():
        if len(pair) == 1:
            raise ModelError(
                f"MODEL {where}: layer {layer} has a {next(iter(pair))}_scale alone. Keys and "
                "values need one each, or --kv-dtype auto"
            )
    return {layer: (pair["k"], pair["v"]) for layer, pair in found.items()}


def _read(path: Path, name: str) -> float:
    scale = read_tensor(path, name).float()
    value = scale.item() if scale.numel() == 1 else math.nan
    if not (math.isfinite(value) and value > 0):
        raise ModelError(
            f"MODEL {path}: {name} holds {scale.flatten()[:3].tolist()}: must be one number above "
            "zero, or use --kv-dtype auto"
        )
    return value
