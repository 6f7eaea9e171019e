"""EAGLE-3 heads in folders of their own: the three public layouts, and one that is always right.

The layouts have random weights. Sizes of the head's layer differ from the target's where a layout
can state them. In the exact checkpoint token ``2 i`` is followed by ``2 * SUCCESSOR[i]``, always.
The target's layers add a mark each to the hidden state, by which the head tells them apart.
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
from tests.support.tiny import edit_config, make_checkpoint

NUM_LAYERS = 8
TARGET_HIDDEN, VOCAB = 32, 64

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """One of the public layouts: names, what is stored, and how config.json is laid out."""

    name: str
    block: str
    prefix: str
    hidden: int
    aux_layers: tuple[int, ...]
    """The target's layers whose input the head reads."""
    layer: Mapping[str, Any]
    """The fields of the head's layer."""
    stored: Mapping[str, Any] = field(default_factory=dict)
    """What config.json has beside them, at its top."""
    is_nested: bool = False
    norm_before_residual: bool = False
    embedding: str | None = None
    """How the embedding is stored: own, or a copy of the target's. None if it is not."""
    draft_vocab: int | None = 24


_LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "hidden_act": "silu"}

SAFEAILAB = Layout(
    name="safeailab",
    block="midlayer",
    prefix="",
    hidden=32,
    aux_layers=(2, 4, 5),
    layer=_LLAMA
    | {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
    },
    stored={"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 24},
)
SPECULATORS_3 = Layout(
    name="speculators",
    block="layers.0",
    prefix="",
    hidden=32,
    aux_layers=(1, 3, 6),
    layer=_LLAMA
    | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "vocab_size": VOCAB,
        "attention_bias": True,
    },
    stored={
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": 24,
        "norm_before_residual": True,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": [1, 3, 6],
        "speculators_config": {"algorithm": "eagle3"},
    },
    is_nested=True,
    norm_before_residual=True,
    embedding="own",
)
VLLM = Layout(
    name="vllm",
    block="layers.0",
    prefix="model.",
    hidden=48,
    aux_layers=(2, 4, 8),
    layer=_LLAMA
    | {
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        "max_position_embeddings": 128,
    },
    stored={
        "architectures": ["LlamaForCausalLMEagle3"],
        "target_hidden_size": TARGET_HIDDEN,
        # These layers write the states, which the ones after them read.
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 7]},
    },
    embedding="own",
)
WHOLE = Layout(
    name="whole",
    block="midlayer",
    prefix="",
    hidden=32,
    aux_layers=(2, 4, 5),
    layer=SAFEAILAB.layer,
    embedding="copy",
    draft_vocab=None,
)
"""SafeAILab's, but every token can be drafted, and the target's matrices are used."""

LAYOUTS = (SAFEAILAB, SPECULATORS_3, VLLM, WHOLE)


def make_target(folder: Path, kind: str = "llama", **shape: Any) -> Path:
    """A target with enough layers, without a head of its own."""
    make_checkpoint(folder, kind, seed=5, num_hidden_layers=NUM_LAYERS, **shape)
    file = folder / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if "mtp" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    edit_config(folder, **{CONFIG_FIELD: {}})
    return folder


def config_of(layout: Layout) -> dict[str, Any]:
    layer = dict(layout.layer)
    return {**layout.stored, **({"transformer_layer_config": layer} if layout.is_nested else layer)}


def make_head_folder(
    folder: Path, layout: Layout, target: Path, *, seed: int = 7, std: float = 0.3
) -> Path:
    """A head of ``layout`` for ``target``, with random weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(layout)))
    write_head(folder, head_tensors(layout, target, seed, std))
    return folder


def write_head(folder: Path, tensors: Tensors) -> None:
    kept = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def read_head(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def head_tensors(layout: Layout, target: Path, seed: int, std: float) -> Tensors:
    torch.manual_seed(seed)
    tensors = {
        name: torch.randn(shape) * std
        if len(shape) > 1 or name.endswith("bias")
        else 1 + 0.1 * torch.randn(shape)
        for name, shape in shapes_of(layout).items()
    }
    if layout.embedding == "copy":
        stored = load_file(target / "model.safetensors")
        tensors[f"{layout.prefix}embed_tokens.weight"] = stored["model.embed_tokens.weight"]
    if layout.draft_vocab is not None:
        tokens = torch.randperm(VOCAB)[: layout.draft_vocab].sort().values
        tensors["d2t"] = tokens - torch.arange(layout.draft_vocab)
        tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, tokens, True)
    return tensors


def shapes_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The matrices and norms by the names that the layout has for them."""
    layer, size = layout.layer, layout.hidden
    dim = layer.get("head_dim", size // layer["num_attention_heads"])
    heads, kv_heads = layer["num_attention_heads"] * dim, layer["num_key_value_heads"] * dim
    mlp = layer["intermediate_size"]
    block = f"{layout.prefix}{layout.block}"
    shapes: dict[str, tuple[int, ...]] = {
        f"{layout.prefix}fc.weight": (size, 3 * TARGET_HIDDEN),
        f"{layout.prefix}norm.weight": (size,),
        f"{block}.hidden_norm.weight": (size,),
        f"{block}.input_layernorm.weight": (size,),
        f"{block}.post_attention_layernorm.weight": (size,),
        f"{block}.self_attn.q_proj.weight": (heads, 2 * size),
        f"{block}.self_attn.k_proj.weight": (kv_heads, 2 * size),
        f"{block}.self_attn.v_proj.weight": (kv_heads, 2 * size),
        f"{block}.self_attn.o_proj.weight": (size, heads),
        f"{block}.mlp.gate_proj.weight": (mlp, size),
        f"{block}.mlp.up_proj.weight": (mlp, size),
        f"{block}.mlp.down_proj.weight": (size, mlp),
    }
    if layer.get("attention_bias"):
        rows = {"q": heads, "k": kv_heads, "v": kv_heads, "o": size}
        shapes |= {f"{block}.self_attn.{name}_proj.bias": (n,) for name, n in rows.items()}
    if layout.draft_vocab is not None:
        shapes["lm_head.weight"] = (layout.draft_vocab, size)
    if layout.embedding == "own":
        shapes[f"{layout.prefix}embed_tokens.weight"] = (VOCAB, size)
    return shapes


# The exact checkpoint.
LIVE, HIDDEN = 32, 40
SUCCESSOR = [(5 * index + 3) % LIVE for index in range(LIVE)]
DEAD = 61
"""A token that the head can draft and that the target never emits."""
MARKS = {1: 32, 2: 33, 3: 34, 4: 35, 5: 36}
"""The feature that each of these layers adds. States are told apart by those that they have."""
_DEAD_FEATURE = 39
_DEADLY = 10.0


def make_exact(folder: Path) -> tuple[Path, Path]:
    """The target, and the head that is right at every step."""
    target, head = folder / "target", folder / "head"
    shape = {"hidden_size": HIDDEN, "intermediate_size": 48, "mlp_bias": True}
    make_target(target, **shape)
    file = target / "model.safetensors"
    tensors = {name: _exact(name, tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    head.mkdir()
    layer = dict(SAFEAILAB.layer) | {"hidden_size": HIDDEN, "intermediate_size": HIDDEN}
    (head / "config.json").write_text(json.dumps(layer | {"draft_vocab_size": LIVE + 1}))
    write_head(head, exact_head())
    return target, head


def _exact(name: str, tensor: Tensor) -> Tensor:
    layer = int(name.split(".")[2]) if ".layers." in name else -1
    if name.endswith("embed_tokens.weight"):
        return torch.zeros(VOCAB, HIDDEN).index_put_(_live_diagonal(), torch.tensor(1.0))
    if name.endswith("lm_head.weight"):
        rows = torch.tensor([2 * index for index in SUCCESSOR])
        return torch.zeros(VOCAB, HIDDEN).index_put_((rows, torch.arange(LIVE)), torch.tensor(1.0))
    if name.endswith("down_proj.bias"):
        marked = torch.zeros(HIDDEN)
        marked[MARKS.get(layer, 0)] = float(layer in MARKS)
        return marked
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.zeros_like(tensor)
    return torch.ones_like(tensor) if "norm" in name else tensor


def _live_diagonal() -> tuple[Tensor, Tensor]:
    return 2 * torch.arange(LIVE), torch.arange(LIVE)


def exact_head() -> Tensors:
    """The head of the exact checkpoint.

    ``fc`` takes the row's token from the first state. From all three it makes a feature that is 0
    if they are the states before layers 2, 4 and 5. It is at least ``_DEADLY`` otherwise, because
    a mark is missing that the layer before adds, or the layer's own mark is there. The layer takes
    each token to its successor. The output matrix drafts the successor of that.
    """
    zero = torch.zeros
    parts = [zero(HIDDEN, HIDDEN) for _ in range(3)]
    parts[0][:LIVE, :LIVE] = torch.eye(LIVE)
    for part, layer in zip(parts, (2, 4, 5), strict=True):
        # The one feature of the token is 1.
        part[_DEAD_FEATURE, :LIVE] = _DEADLY
        part[_DEAD_FEATURE, MARKS[layer - 1]] = -_DEADLY
        part[_DEAD_FEATURE, MARKS[layer]] = _DEADLY
    step = torch.eye(HIDDEN)
    step[:LIVE, :LIVE] = zero(LIVE, LIVE).index_put_(
        (torch.tensor(SUCCESSOR), torch.arange(LIVE)), torch.tensor(1.0)
    )
    # silu of a large number is that number. It multiplies the one feature that is there.
    norm = HIDDEN**0.5
    gate = torch.full((HIDDEN, HIDDEN), 4.0)
    output = zero(LIVE + 1, HIDDEN).index_put_(
        (torch.tensor(SUCCESSOR), torch.arange(LIVE)), torch.tensor(1.0)
    )
    output[LIVE, _DEAD_FEATURE] = 1.0
    tokens = torch.tensor([*range(0, 2 * LIVE, 2), DEAD])
    dim = HIDDEN // 4
    attention = "midlayer.self_attn"
    return {
        "fc.weight": torch.cat(parts, dim=1),
        "norm.weight": torch.ones(HIDDEN),
        "midlayer.hidden_norm.weight": torch.ones(HIDDEN),
        "midlayer.input_layernorm.weight": torch.ones(HIDDEN),
        "midlayer.post_attention_layernorm.weight": torch.ones(HIDDEN),
        f"{attention}.q_proj.weight": torch.randn(HIDDEN, 2 * HIDDEN),
        f"{attention}.k_proj.weight": torch.randn(2 * dim, 2 * HIDDEN),
        f"{attention}.v_proj.weight": torch.randn(2 * dim, 2 * HIDDEN),
        f"{attention}.o_proj.weight": zero(HIDDEN, HIDDEN),
        "midlayer.mlp.gate_proj.weight": gate,
        "midlayer.mlp.up_proj.weight": torch.eye(HIDDEN),
        "midlayer.mlp.down_proj.weight": (step - torch.eye(HIDDEN)) / (4.0 * norm * norm),
        "lm_head.weight": output,
        "d2t": tokens - torch.arange(LIVE + 1),
        "t2d": zero(VOCAB, dtype=torch.bool).index_fill_(0, tokens, True),
    }
