"""Every preset's architecture at a tiny size."""

from dataclasses import replace
from typing import Any

import pytest

from cgbench.models.presets import PRESETS

SMALLER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "num_experts": 16,
    "n_routed_experts": 16,
    "moe_num_experts": 16,
    "num_experts_per_tok": 3,
    "moe_k": 3,
    "moe_layer_end_index": 3,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "sliding_window": 9,
    "sliding_window_size": 8,
    "num_attention_groups": 2,
    "moe_top_k": 3,
    "share_expert_dim": 32,
    "moe_layers_enum": "1,2,3",
    "attention_other_setting": {"num_attention_heads": 8},
    "max_position_embeddings": 512,
    "eos_token_id": None,
}

MIXTURES = (
    "qwen3-30b-a3b",
    "ernie-4.5-21b-a3b",
    "deepseek-v3-6l",
    "qwen3.5-35b-a3b",
    "glm-4.5-air",
    "mimo-v2-flash-9l",
    "step-3.5-flash-14l",
)


def shrink_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every preset a tiny size, its architecture and its name unchanged."""
    for name, preset in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, replace(preset, config=_smaller(dict(preset.config))))


def _smaller(config: dict[str, Any]) -> dict[str, Any]:
    num_layers = config["num_hidden_layers"]
    config |= {name: value for name, value in SMALLER.items() if name in config}
    for name, value in config.items():
        if isinstance(value, list) and len(value) > num_layers:
            # Of each layer, and then of each module.
            config[name] = value[: SMALLER["num_hidden_layers"]] + value[num_layers:]
    if "kv_lora_rank" in config:
        config["num_key_value_heads"] = config["num_attention_heads"]
    rope = config.get("rope_parameters", {})
    if "mrope_section" in rope:
        config["rope_parameters"] = {**rope, "mrope_section": [1, 1, 0]}
    return config
