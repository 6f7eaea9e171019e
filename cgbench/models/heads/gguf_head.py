"""Read the MTP head of a GGUF file, which llama.cpp writes as a block past the target's last.

The block's tensors have the names of any layer's, and go through transformers' own renaming and
conversions as one. The tensors around it are ``nextn.*``, whose names transformers does not know.
Everything is handed over as a safetensors checkpoint of the same model has it, dequantised.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from cgbench.errors import ModelError
from cgbench.models.checkpoint import StoredTensor

_NEXTN = ".nextn."
# llama.cpp's names within the block, and Qwen's. It adds 1 to the weights of Qwen's norms.
_AROUND = {
    "nextn.eh_proj.weight": "mtp.fc.weight",
    "nextn.embed_tokens.weight": "mtp.embed_tokens.weight",
    "nextn.enorm.weight": "mtp.pre_fc_norm_embedding.weight",
    "nextn.hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
    "nextn.shared_head_head.weight": "mtp.lm_head.weight",
    "nextn.shared_head_norm.weight": "mtp.norm.weight",
}
_LAYER, _BLOCK = "model.layers.0.", "mtp.layers.0."


@dataclass
class _Part:
    """A tensor of the head: what of the file it is made of, and transformers' conversions."""

    sources: dict[str, Any] = field(default_factory=dict)
    """The reader's tensors, by the pattern of the converter that they match."""
    operations: Sequence[Any] = ()
    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_shifted: bool = False

    def converted(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the head's tensor that ``tensors``, by pattern, make."""
        values: dict[str, list[Tensor]] = {pattern: [tensor] for pattern, tensor in tensors.items()}
        for operation in self.operations:
            values = operation.convert(values, **self.patterns)
        (value,) = values.values()
        whole: Tensor = value[0] if isinstance(value, list) else value
        return whole - 1 if self.is_shifted else whole


def gguf_head_files(file: Path) -> dict[str, Path]:
    """Return the names that a checkpoint has for the tensors of the head in ``file``.

    Each is mapped to ``file``. Raise ``ModelError`` if the file holds no head, or one that
    transformers has no conversion of.
    """
    return dict.fromkeys(_parts(file), file)


def gguf_header(file: Path, name: str) -> StoredTensor:
    """Return the header of the head's tensor ``name``, as it is after it is dequantised."""
    part = _parts(file)[name]
    shapes = {
        pattern: torch.empty([*map(int, reversed(tensor.shape))], device="meta")
        for pattern, tensor in part.sources.items()
    }
    return StoredTensor(name, "F32", tuple(part.converted(shapes).shape), file.name)


def read_gguf_tensor(file: Path, name: str) -> Tensor:
    """Return the head's tensor ``name`` in float32."""
    from gguf.quants import dequantize

    part = _parts(file)[name]
    read = {
        pattern: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for pattern, tensor in part.sources.items()
    }
    return part.converted(read)


@functools.lru_cache(maxsize=2)
def _parts(file: Path) -> dict[str, _Part]:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    nextn = sorted(name for name in tensors if _NEXTN in name)
    if not nextn:
        raise ModelError(f"MODEL {file}: the GGUF file holds no MTP head. Give --head PATH")
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    converters = _conversions(file, str(architecture.contents()))
    blocks = sorted({int(match[1]) for name in nextn if (match := re.match(r"blk\.(\d+)\.", name))})
    if converters is None or len(blocks) > 1:
        why = "of several modules " if len(blocks) > 1 else ""
        raise ModelError(
            f"MODEL {file}: its MTP head {why}({nextn[0]}, ...) is not read from GGUF. Give --head "
            "with safetensors"
        )
    prefix = f"blk.{blocks[0]}."
    inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return _named(inside, converters)


def _conversions(file: Path, architecture: str) -> Sequence[Any] | None:
    """Return transformers' conversions for an architecture whose head has Qwen's names.

    It is None if there are none. They are inner parts of transformers, so they are imported here.
    """
    if architecture not in ("qwen35", "qwen35moe"):
        return None
    try:
        from transformers.integrations.gguf import get_gguf_conversion_mapping
    except ImportError:
        return None
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    mapping: Sequence[Any] = get_gguf_conversion_mapping(architecture, config)
    return mapping


def _named(inside: Mapping[str, Any], conversions: Sequence[Any]) -> dict[str, _Part]:
    """Return the head's tensors by a checkpoint's names. ``inside`` are those of its block."""
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    parts: dict[str, _Part] = {}
    for rest, tensor in inside.items():
        if rest in _AROUND:
            is_norm = rest.endswith("norm.weight")
            parts[_AROUND[rest]] = _Part({rest: tensor}, is_shifted=is_norm)
            continue
        # As a layer of the target, because transformers drops the block itself by its number.
        name, pattern = rename_source_key(f"blk.0.{rest}", renamings, converters)
        part = parts.setdefault(f"{_BLOCK}{name.removeprefix(_LAYER)}", _Part())
        part.sources[pattern or rest] = tensor
        if pattern is not None:
            converter = by_pattern[pattern]
            part.operations = converter.operations
            part.patterns = {
                "source_patterns": converter.source_patterns,
                "target_patterns": converter.target_patterns,
            }
    return parts
