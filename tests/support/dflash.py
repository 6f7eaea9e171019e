"""DFlash drafters in folders of their own: the public layout in three forms, and one always right.

Those of the layout have random weights. In the exact checkpoint the target goes round in circles of
``CIRCLE`` tokens. So the token before a draft stands ``CIRCLE + 1`` positions before it too. That
is the one row of the context that each mask of the drafter's block attends to, by its distance.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cgbench.models.heads.head_wiring import CONFIG_FIELD
from tests.support.eagle3 import TARGET_HIDDEN, VOCAB, write_head
from tests.support.tiny import edit_config, make_checkpoint

NUM_LAYERS = 4
MASK = VOCAB - 1

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """One drafter of the layout: the fields of its layers, and how config.json states the rest."""

    name: str
    target_layer_ids: tuple[int, ...]
    """The target's layers whose output the drafter reads."""
    layers: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the layers that are not those below."""
    stated: Mapping[str, Any] = field(default_factory=dict)
    """What config.json has beside them, at its top."""
    causal_layers: tuple[int, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        own = {"mask_token_id": MASK, "target_layer_ids": [*self.target_layer_ids]}
        base = {"dflash_config": own, "block_size": 8, **_QWEN3, **self.layers}
        return {**base, **self.stated}


_QWEN3: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
    "hidden_size": TARGET_HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "num_target_layers": NUM_LAYERS,
    "vocab_size": VOCAB,
}

FULL = Form("full", (0, 1, 2))
"""As z-lab's drafters of Qwen3: every layer sees the whole block."""
MIXED = Form(
    "mixed",
    (0, 2),
    layers={
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "attention_bias": True,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "use_sliding_window": True,
        "sliding_window": 7,
    },
    causal_layers=(0, 2),
)
"""Sliding layers are causal unless config.json states otherwise."""
WINDOWS = Form(
    "windows",
    (1,),
    layers={
        "layer_types": ["sliding_attention"] * 2,
        "use_sliding_window": True,
        "sliding_window": 9,
    },
    stated={
        "is_causal": False,
        "block_size": None,
        "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [1], "block_size": 6},
    },
)
"""Sliding layers that see the later rows of the block, and a block size in the other place."""

FORMS = (FULL, MIXED, WINDOWS)


def make_target(folder: Path, **shape: Any) -> Path:
    """A target without a head of its own."""
    make_checkpoint(folder, "llama", seed=5, num_hidden_layers=NUM_LAYERS, **shape)
    file = folder / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if "mtp" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    edit_config(folder, **{CONFIG_FIELD: {}})
    return folder


def make_drafter(folder: Path, form: Form, *, seed: int = 7, std: float = 0.3) -> Path:
    """A drafter of ``form``, with random weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(form.config))
    torch.manual_seed(seed)
    tensors = {
        name: torch.randn(shape) * std
        if len(shape) > 1 or name.endswith("bias")
        else 1 + 0.1 * torch.randn(shape)
        for name, shape in shapes_of(form.config, len(form.target_layer_ids)).items()
    }
    write_head(folder, tensors)
    return folder


def shapes_of(config: Mapping[str, Any], num_aux: int) -> dict[str, tuple[int, ...]]:
    """The matrices and norms by their public names."""
    size, dim, mlp = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (size, num_aux * TARGET_HIDDEN),
        "hidden_norm.weight": (size,),
        "norm.weight": (size,),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"layers.{number}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (size,),
            f"{layer}.post_attention_layernorm.weight": (size,),
            f"{layer}.self_attn.q_norm.weight": (dim,),
            f"{layer}.self_attn.k_norm.weight": (dim,),
            f"{layer}.self_attn.q_proj.weight": (heads, size),
            f"{layer}.self_attn.k_proj.weight": (kv_heads, size),
            f"{layer}.self_attn.v_proj.weight": (kv_heads, size),
            f"{layer}.self_attn.o_proj.weight": (size, heads),
            f"{layer}.mlp.gate_proj.weight": (mlp, size),
            f"{layer}.mlp.up_proj.weight": (mlp, size),
            f"{layer}.mlp.down_proj.weight": (size, mlp),
        }
        if config.get("attention_bias"):
            rows = {"q": heads, "k": kv_heads, "v": kv_heads, "o": size}
            shapes |= {f"{layer}.self_attn.{name}_proj.bias": (n,) for name, n in rows.items()}
    return shapes


# The exact checkpoint.
CIRCLE, LIVE = 7, 28
_MASK_FEATURE = 30
_SHARPNESS = 400.0
EXACT = Form("exact", (0, 2), layers={"num_attention_heads": 2, "num_key_value_heads": 2})


def successor(token: int) -> int:
    """The target's next token: the next of its circle."""
    return token - token % CIRCLE + (token % CIRCLE + 1) % CIRCLE


def circling(start: int, length: int) -> list[int]:
    """``length`` tokens from ``start`` on, each the successor of the one before."""
    tokens = [start]
    while len(tokens) < length:
        tokens.append(successor(tokens[-1]))
    return tokens


def make_exact(folder: Path) -> tuple[Path, Path]:
    """The target, and the drafter that is right at every position."""
    target, drafter = make_target(folder / "target"), folder / "drafter"
    file = target / "model.safetensors"
    tensors = {name: _exact(name, tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    make_drafter(drafter, EXACT)
    write_head(drafter, _exact_drafter())
    return target, drafter


def _exact(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("embed_tokens.weight"):
        weight = torch.zeros(VOCAB, TARGET_HIDDEN)
        weight[range(LIVE), range(LIVE)] = 1.0
        weight[MASK, _MASK_FEATURE] = 1.0
        return weight
    if name.endswith("lm_head.weight"):
        weight = torch.zeros(VOCAB, TARGET_HIDDEN)
        weight[[successor(token) for token in range(LIVE)], range(LIVE)] = 1.0
        return weight
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.zeros_like(tensor)
    return torch.ones_like(tensor) if "norm" in name else tensor


def _exact_drafter() -> Tensors:
    """The first layer copies the token at the distance. The second adds nothing."""
    size, dim = TARGET_HIDDEN, EXACT.config["head_dim"]
    tensors = {
        name: torch.zeros(shape) if len(shape) > 1 else torch.ones(shape)
        for name, shape in shapes_of(EXACT.config, 2).items()
    }
    tensors["fc.weight"] = torch.cat([torch.eye(size) / 2] * 2, dim=1)
    # Every key is the same pair of numbers, and a mask's query that pair turned by the distance.
    turns = (CIRCLE + 1) / 10000.0 ** (torch.arange(0, dim, 2) / dim)
    key = torch.cat([torch.ones(dim // 2), torch.zeros(dim // 2)])
    query = torch.cat([turns.cos(), -turns.sin()])
    attention = "layers.0.self_attn"
    tensors[f"{attention}.k_proj.weight"] = key.repeat(2)[:, None].expand(-1, size)
    tensors[f"{attention}.q_proj.weight"][:, _MASK_FEATURE] = query.repeat(2)
    tensors[f"{attention}.q_norm.weight"] *= _SHARPNESS
    tensors[f"{attention}.v_proj.weight"] = torch.eye(size)
    tensors[f"{attention}.o_proj.weight"] = torch.eye(size)
    return tensors
