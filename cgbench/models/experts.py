"""Mixture-of-experts weights: fused in transformers' modules, an expert apart in checkpoints."""

import torch
from torch import Size, Tensor

# transformers' fused parameter -> the checkpoint's projections of each expert, in fusing order.
# Source: transformers' conversion mapping of qwen2_moe, which DeepSeek-V3, GLM-4 and Qwen3 share.
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def expert_parts(name: str, shape: Size) -> dict[str, Size] | None:
    """The per-expert tensors that make the fused ``name`` of ``shape [E, out, in]``, in order.

    None where ``name`` is no fused expert weight.
    """
    prefix, _, leaf = name.rpartition(".")
    if not prefix.endswith(".experts") or leaf not in _PARTS:
        return None
    num_experts, rows, columns = shape
    parts = _PARTS[leaf]
    part_shape = Size((rows // len(parts), columns))
    return {
        f"{prefix}.{expert}.{part}.weight": part_shape
        for expert in range(num_experts)
        for part in parts
    }


def num_fused(name: str) -> int:
    """How many projections the fused parameter ``name`` of experts has one above another, 1 for
    every other parameter."""
    prefix, _, leaf = name.rpartition(".")
    return len(_PARTS[leaf]) if prefix.endswith(".experts") and leaf in _PARTS else 1


def fuse(tensors: list[Tensor], shape: Size) -> Tensor:
    """``tensors`` as ``expert_parts`` orders them, as one of ``shape [E, out, in]``."""
    return torch.cat(tensors).reshape(shape)
