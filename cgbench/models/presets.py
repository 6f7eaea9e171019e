"""Define shape presets: public models' configurations, to be filled with random weights.

A preset measures a shape, never a model's quality, and every output labels it "random weights". To
add one, add an entry with the config as the public checkpoint states it. The file is a table, and
grows with the presets. It imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cgbench.request.acceptance_lengths import GOLDEN, Golden, GoldenLength


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset is a public model's shape, without its weights.

    ``config`` is the part of the public ``config.json`` that decides shapes. ``source`` names the
    model. The head, of ``num_modules`` MTP modules, has the form of ``head_family``: MiMo's if the
    public model has none. ``has_own_outputs``: each module has an output matrix of its own.
    ``has_dense_head``: its blocks are dense, or None if the config alone decides. ``is_fp8``: the
    weights are converted as in the public FP8 checkpoint of the family, in blocks of 128 x 128.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    head_family: str = "mimo"
    is_fp8: bool = False
    num_modules: int = 1
    has_own_outputs: bool = False
    has_dense_head: bool | None = None


_GOLDEN_OF_FAMILY = {
    "deepseek": "deepseek-v4-on",
    "glm": "glm-5.2-on",
    "qwen": "qwen3.5-397b-on",
}
"""The row of the golden table (``request.acceptance_lengths``), by the start of a model type."""

_MIDDLE_GOLDEN = "glm-5.2-on"
"""A family without a row borrows this one.

Of the rows with thinking on, it lies between the other two at every k. So it overstates and
understates least.
"""


def default_golden(preset: Preset) -> GoldenLength:
    """Return the acceptance of a preset's drafts if ``--acceptance`` is not given.

    The length is that of the model's family. Random weights would accept no draft, and tokens a
    second would show nothing about the shape.
    """
    model_type = preset.config["model_type"]
    names = (row for family, row in _GOLDEN_OF_FAMILY.items() if model_type.startswith(family))
    return golden_for(preset, GOLDEN[next(names, _MIDDLE_GOLDEN)])


def golden_for(preset: Preset, row: Golden) -> GoldenLength:
    """Return a golden row's lengths, marked as borrowed if another model was measured."""
    measured_on = row.name.rpartition("-")[0]
    return GoldenLength(row, is_borrowed=not preset.name.startswith(measured_on))


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

_QWEN3 = {
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "eos_token_id": 151645,
}
"""The transformers of that generation share these fields, dense or with experts."""

_QWEN3_5 = {
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
    "eos_token_id": 248044,
}
"""The hybrids of one generation share these fields. Every fourth layer is full attention."""

_STEP_ROPE = {
    "rope_type": "llama3",
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 32.0,
    "original_max_position_embeddings": 131072,
}
"""Of the full layers alone."""


def _step_layers(full: Any, sliding: Any) -> list[Any]:
    """A setting of each of Step-3.5's first 14 layers, every fourth of which is full, and of its
    modules."""
    return [full if layer % 4 == 0 else sliding for layer in range(14)] + [sliding] * 3


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="mimo-7b",
            source="XiaomiMiMo/MiMo-7B-Base config.json",
            config={
                "model_type": "mimo",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 151680,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5,
                "rope_theta": 640000.0,
                "tie_word_embeddings": False,
                "attention_bias": True,
                "use_sliding_window": False,
                "num_nextn_predict_layers": 1,
                "eos_token_id": 151643,
            },
        ),
        Preset(
            name="qwen3-0.6b",
            source="Qwen/Qwen3-0.6B config.json",
            config={
                **_QWEN3,
                "model_type": "qwen3",
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "tie_word_embeddings": True,
            },
        ),
        Preset(
            name="qwen3-8b",
            source="Qwen/Qwen3-8B config.json",
            config={
                **_QWEN3,
                "model_type": "qwen3",
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "tie_word_embeddings": False,
            },
        ),
        Preset(
            name="qwen3-32b",
            source="Qwen/Qwen3-32B config.json",
            config={
                **_QWEN3,
                "model_type": "qwen3",
                "hidden_size": 5120,
                "intermediate_size": 25600,
                "num_hidden_layers": 64,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "tie_word_embeddings": False,
            },
        ),
        Preset(
            name="llama-3.1-8b",
            source="meta-llama/Llama-3.1-8B config.json",
            config={
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_parameters": _LLAMA3_ROPE,
                "tie_word_embeddings": False,
                "eos_token_id": 128001,
            },
        ),
        Preset(
            name="gemma-3-1b",
            source="google/gemma-3-1b-it config.json",
            config={
                "model_type": "gemma3_text",
                "hidden_size": 1152,
                "intermediate_size": 6912,
                "num_hidden_layers": 26,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "sliding_window": 512,
                "sliding_window_pattern": 6,
                "vocab_size": 262144,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
                "eos_token_id": 1,
            },
        ),
        Preset(
            name="qwen3-30b-a3b",
            source="Qwen/Qwen3-30B-A3B config.json",
            config={
                **_QWEN3,
                "model_type": "qwen3_moe",
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "norm_topk_prob": True,
                "decoder_sparse_step": 1,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "tie_word_embeddings": False,
            },
        ),
        Preset(
            name="ernie-4.5-21b-a3b",
            source="baidu/ERNIE-4.5-21B-A3B-PT config.json",
            head_family="ernie",
            config={
                "model_type": "ernie4_5_moe",
                "hidden_size": 2560,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
                "moe_num_experts": 64,
                "moe_num_shared_experts": 2,
                "moe_k": 6,
                "moe_layer_start_index": 1,
                "moe_layer_end_index": 27,
                "moe_layer_interval": 1,
                "num_hidden_layers": 28,
                "num_attention_heads": 20,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "vocab_size": 103424,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0,
                "use_bias": False,
                "tie_word_embeddings": True,
                "eos_token_id": 2,
            },
        ),
        Preset(
            name="deepseek-v3-6l",
            source="deepseek-ai/DeepSeek-V3 config.json, its first 6 of 61 layers (3 are dense)",
            head_family="deepseek",
            config={
                "model_type": "deepseek_v3",
                "hidden_size": 7168,
                "intermediate_size": 18432,
                "moe_intermediate_size": 2048,
                "n_routed_experts": 256,
                "n_shared_experts": 1,
                "num_experts_per_tok": 8,
                "n_group": 8,
                "topk_group": 4,
                "norm_topk_prob": True,
                "routed_scaling_factor": 2.5,
                "first_k_dense_replace": 3,
                "q_lora_rank": 1536,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "num_hidden_layers": 6,
                "num_attention_heads": 128,
                "num_key_value_heads": 128,
                "vocab_size": 129280,
                "max_position_embeddings": 163840,
                "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
                "num_nextn_predict_layers": 1,
                "eos_token_id": 1,
            },
        ),
        Preset(
            name="glm-4.7-flash",
            source="zai-org/GLM-4.7-Flash config.json, as Glm4MoeLiteConfig of transformers has it",
            head_family="deepseek",
            config={
                "model_type": "glm4_moe_lite",
                "hidden_size": 2048,
                "intermediate_size": 10240,
                "moe_intermediate_size": 1536,
                "n_routed_experts": 64,
                "n_shared_experts": 1,
                "num_experts_per_tok": 4,
                "n_group": 1,
                "topk_group": 1,
                "norm_topk_prob": True,
                "routed_scaling_factor": 1.8,
                "q_lora_rank": 768,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 192,
                "qk_rope_head_dim": 64,
                "v_head_dim": 256,
                "num_hidden_layers": 47,
                "num_attention_heads": 20,
                "num_key_value_heads": 20,
                "vocab_size": 154880,
                "max_position_embeddings": 202752,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
                "num_nextn_predict_layers": 1,
                "eos_token_id": 1,
            },
        ),
        Preset(
            name="mimo-v2-flash-9l",
            source="XiaomiMiMo/MiMo-V2-Flash config.json, its first 9 of 48 layers (one is dense)",
            head_family="mimo_v2",
            num_modules=3,
            has_dense_head=True,
            config={
                "model_type": "mimo_v2_flash",
                "hidden_size": 4096,
                "intermediate_size": 16384,
                "moe_intermediate_size": 2048,
                "n_routed_experts": 256,
                "num_experts_per_tok": 8,
                "n_group": 1,
                "topk_group": 1,
                "norm_topk_prob": True,
                "routed_scaling_factor": None,
                "num_hidden_layers": 9,
                "num_attention_heads": 64,
                "num_key_value_heads": 4,
                "head_dim": 192,
                "v_head_dim": 128,
                "attention_value_scale": 0.707,
                "sliding_window_size": 128,
                "vocab_size": 152576,
                "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "eos_token_id": 151645,
            },
        ),
        Preset(
            name="step-3.5-flash-14l",
            source="stepfun-ai/Step-3.5-Flash config.json, its first 14 of 45 layers (3 are dense)",
            head_family="step",
            num_modules=3,
            has_own_outputs=True,
            has_dense_head=True,
            config={
                "model_type": "step3p5",
                "hidden_size": 4096,
                "intermediate_size": 11264,
                "moe_intermediate_size": 1280,
                "share_expert_dim": 1280,
                "moe_num_experts": 288,
                "moe_top_k": 8,
                "moe_router_scaling_factor": 3.0,
                "moe_layers_enum": "3,4,5,6,7,8,9,10,11,12,13",
                "num_hidden_layers": 14,
                "num_nextn_predict_layers": 3,
                "num_attention_heads": 64,
                "num_attention_groups": 8,
                "head_dim": 128,
                "attention_other_setting": {
                    "attention_type": "sliding_attention",
                    "num_attention_heads": 96,
                    "num_attention_groups": 8,
                    "head_dim": 128,
                },
                "layer_types": _step_layers("full_attention", "sliding_attention"),
                "sliding_window": 512,
                "rope_theta": _step_layers(5000000.0, 10000.0),
                "partial_rotary_factors": _step_layers(0.5, 1.0),
                "rope_scaling": _STEP_ROPE,
                "vocab_size": 128896,
                "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "eos_token_id": [1, 2, 128007],
            },
        ),
        Preset(
            name="qwen3.5-0.8b",
            source="Qwen/Qwen3.5-0.8B config.json, its text side",
            head_family="qwen",
            config={
                **_QWEN3_5,
                "model_type": "qwen3_5_text",
                "hidden_size": 1024,
                "intermediate_size": 3584,
                "num_hidden_layers": 24,
                "num_attention_heads": 8,
                "linear_num_value_heads": 16,
                "tie_word_embeddings": True,
            },
        ),
        Preset(
            name="qwen3.5-35b-a3b",
            source="Qwen/Qwen3.5-35B-A3B config.json, its text side",
            head_family="qwen",
            config={
                **_QWEN3_5,
                "model_type": "qwen3_5_moe_text",
                "hidden_size": 2048,
                "moe_intermediate_size": 512,
                "shared_expert_intermediate_size": 512,
                "num_experts": 256,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 40,
                "num_attention_heads": 16,
                "linear_num_value_heads": 32,
                "tie_word_embeddings": False,
            },
        ),
        Preset(
            name="qwen3-next-80b-a3b",
            source="Qwen/Qwen3-Next-80B-A3B-Instruct config.json",
            head_family="qwen",
            config={
                "model_type": "qwen3_next",
                "hidden_size": 2048,
                "intermediate_size": 5120,
                "moe_intermediate_size": 512,
                "shared_expert_intermediate_size": 512,
                "num_experts": 512,
                "num_experts_per_tok": 10,
                "norm_topk_prob": True,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "num_hidden_layers": 48,
                "full_attention_interval": 4,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "head_dim": 256,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 32,
                "linear_key_head_dim": 128,
                "linear_value_head_dim": 128,
                "linear_conv_kernel_dim": 4,
                "vocab_size": 151936,
                "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-6,
                "rope_theta": 10000000.0,
                "partial_rotary_factor": 0.25,
                "tie_word_embeddings": False,
                "eos_token_id": 151645,
            },
        ),
        Preset(
            name="glm-4.5-air",
            source="zai-org/GLM-4.5-Air config.json. 213 GB in bfloat16, for two 141 GB GPUs",
            head_family="deepseek",
            config={
                "model_type": "glm4_moe",
                "hidden_size": 4096,
                "intermediate_size": 10944,
                "moe_intermediate_size": 1408,
                "n_routed_experts": 128,
                "n_shared_experts": 1,
                "num_experts_per_tok": 8,
                "n_group": 1,
                "topk_group": 1,
                "norm_topk_prob": True,
                "routed_scaling_factor": 1.0,
                "first_k_dense_replace": 1,
                "num_hidden_layers": 46,
                "num_attention_heads": 96,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "attention_bias": True,
                "use_qk_norm": False,
                "partial_rotary_factor": 0.5,
                "vocab_size": 151552,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1000000.0,
                "tie_word_embeddings": False,
                "num_nextn_predict_layers": 1,
                "eos_token_id": 151329,
            },
        ),
    )
}

_IN_FP8_TOO = (
    *("mimo-7b", "deepseek-v3-6l", "qwen3.5-35b-a3b", "qwen3-next-80b-a3b", "glm-4.5-air"),
    "glm-4.7-flash",
)

PRESETS |= {
    f"{name}-fp8": replace(PRESETS[name], name=f"{name}-fp8", is_fp8=True) for name in _IN_FP8_TOO
}
"""These presets have the same shapes with FP8 weights."""
