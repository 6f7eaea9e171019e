"""Tiny FP8 checkpoints, as public ones are laid out, each beside the same weights dequantised."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cgbench.kernels.fp8.block_scales import (
    FP8,
    LARGEST,
    dequantised,
    quantised,
    row_blocks_of,
)
from cgbench.models.heads.families import HeadFamily
from tests.support.tiny import edit_config, make_checkpoint

BLOCK = 16
"""Of tiny weights, so that they have several, and the last a part."""

FINE_GRAINED = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}


def compressed(strategy: str) -> dict[str, Any]:
    """A ``quantization_config`` of compressed-tensors, as llm-compressor writes it."""
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "dynamic": False}
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


# What public FP8 checkpoints leave in bfloat16: embeddings, lm_head, routers, an MTP projection.
_PLAIN = ("embed", "lm_head", "shared_head", ".gate.", "eh_proj", "input_proj", "mtp.fc", "conv1d")


def is_converted(name: str, tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not any(part in name for part in _PLAIN)


def by_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    return quantised(weight, BLOCK)


def by_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.float().abs().amax(dim=1, keepdim=True) / LARGEST
    return (weight / scale).to(FP8), scale


def by_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.float().abs().amax() / LARGEST
    return (weight / scale).to(FP8), scale.reshape(1)


def by_powers_of_two(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of eight bits, exponents alone, as DeepSeek-V3.1 has them."""
    _, scale = by_blocks(weight)
    power = torch.exp2(scale.log2().ceil())
    values = power.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    stored = weight.float() / values[: weight.shape[0], : weight.shape[1]]
    return stored.to(FP8), power.to(torch.float8_e8m0fnu)


def make_fp8_checkpoint(
    folder: Path,
    kind: str,
    family: HeadFamily,
    *,
    quantise: Callable[[Tensor], tuple[Tensor, Tensor]] = by_blocks,
    config: dict[str, Any] | None = None,
    scale_name: str = "_scale_inv",
    converts: Callable[[str, Tensor], bool] = is_converted,
    num_shards: int = 1,
    **shape: Any,
) -> tuple[Path, Path]:
    """A checkpoint of ``kind`` with FP8 weights, and the same with their values in float32."""
    plain, quantised_folder = folder / "plain", folder / "fp8"
    make_checkpoint(plain, kind, family=family, **shape)
    tensors = load_file(plain / "model.safetensors")
    stored, values = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if converts(name, tensor):
            weight, scale = quantise(tensor)
            stored |= {name: weight, f"{name}{scale_name}": scale}
            grid = scale.float() if scale.dim() == 2 else scale[:, None]
            row_blocks = row_blocks_of(tensor.shape[0], grid.shape[0])
            values[name] = dequantised(weight, grid, row_blocks, torch.float32)
    shutil.copytree(plain, quantised_folder)
    save_file(values, plain / "model.safetensors", metadata={"format": "pt"})
    save_shards(quantised_folder, stored, num_shards)
    edit_config(quantised_folder, quantization_config=config or FINE_GRAINED)
    return quantised_folder, plain


def save_shards(folder: Path, tensors: dict[str, Tensor], num_shards: int) -> None:
    """One file, or several with an index; a weight and its scales may lie in two."""
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = sorted(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        mine = {name: tensors[name] for name in names[shard::num_shards]}
        save_file(mine, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def edit_tensors(folder: Path, **changes: Tensor | None) -> None:
    """Put tensors into a checkpoint's one file, or take them out."""
    file = folder / "model.safetensors"
    tensors = load_file(file) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})
