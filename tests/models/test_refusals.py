"""Models that would be decoded wrongly are refused by name, before or while they are loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    LlamaConfig,
    PretrainedConfig,
)

from cgbench.errors import ModelError, UnsupportedModelError
from cgbench.models.attention_hook import ATTENTION_NAME
from cgbench.models.config_fields import check_fields
from cgbench.models.kept_types import kept_in_float32
from cgbench.models.skeleton import _config_fault, make_skeleton
from cgbench.models.support import auto_class_for, check_config
from cgbench.models.target import Target, _logits_rescale
from tests.support.tiny import (
    CONFIGS,
    HYBRID_CONFIGS,
    MORE_CONFIGS,
    SHAPE,
    load_tiny,
    make_checkpoint,
)


def add_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | {name: tensor}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["o_proj.bias", "q_proj.weight_scale"])
def test_a_tensor_that_has_no_place_in_its_layer(tmp_path: Path, name: str) -> None:
    """A bias that config.json denies, or the scales of weights in fewer bits: without them the
    weights mean something else."""
    folder = make_checkpoint(tmp_path, "llama")
    stored = f"model.layers.1.self_attn.{name}"
    add_tensor(folder, stored, torch.ones(32))
    with pytest.raises(ModelError, match=f"1 tensors have no place .* {stored}"):
        load_tiny(folder)


@pytest.mark.parametrize(
    "name",
    ["model.layers.2.self_attn.q_proj.weight", "model.rotary_emb.inv_freq", "vision.proj.weight"],
)
def test_tensors_of_other_modules_are_left_in_the_file(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    add_tensor(folder, name, torch.ones(32))
    load_tiny(folder)


def test_quantisation_that_the_text_part_declares() -> None:
    config = AutoConfig.for_model(
        "qwen3_5", text_config=SHAPE | {"quantization_config": {"quant_method": "awq"}}
    )
    with pytest.raises(UnsupportedModelError, match="quant_method awq"):
        check_config(config)


def test_attention_in_both_directions() -> None:
    config = MORE_CONFIGS["gemma3_text"].to_dict() | {"use_bidirectional_attention": True}
    with pytest.raises(UnsupportedModelError, match="both directions"):
        check_config(type(MORE_CONFIGS["gemma3_text"]).from_dict(config))


def refused(kind: str, **changes: Any) -> str:
    config = AutoConfig.for_model(kind, **(SHAPE | changes))
    with pytest.raises(UnsupportedModelError) as caught:
        make_skeleton(config, None)
    return str(caught.value)


@pytest.mark.parametrize("kind", CONFIGS | MORE_CONFIGS | HYBRID_CONFIGS)
def test_transformers_alone_runs_every_target(kind: str) -> None:
    """So a model that only the engine cannot run is not taken for a broken config."""
    assert _config_fault((CONFIGS | MORE_CONFIGS | HYBRID_CONFIGS)[kind]) is None


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [("hidden_act", "x", "hidden_act: x is unknown"), ("head_dim", 3, "")],
)
def test_a_config_that_transformers_cannot_run_is_at_fault(
    field: str, value: object, fault: str
) -> None:
    config = AutoConfig.for_model("llama", **(SHAPE | {field: value}))
    with pytest.raises(ModelError, match=f"MODEL x: gives no LlamaForCausalLM .*: {fault}"):
        make_skeleton(config, None, where="MODEL x")


def test_a_mask_of_its_own() -> None:
    assert "attention mask of its own" in refused("doge")


def test_two_attentions_a_layer() -> None:
    assert "more than once" in refused("diffllama")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("phimoe", {"sliding_window": 7, "num_local_experts": 4}),
        ("qwen2_moe", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2}),
    ],
)
def test_a_window_that_attention_is_not_told(kind: str, changes: dict[str, Any]) -> None:
    assert "sliding window of 7 tokens" in refused(kind, **changes)
    make_skeleton(AutoConfig.for_model(kind, **(SHAPE | changes | {"sliding_window": None})), None)


def test_longrope_ends_where_its_frequencies_change() -> None:
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    changes = {"rope_scaling": scaling, "original_max_position_embeddings": 30}
    config = AutoConfig.for_model("phi3", **(SHAPE | changes))
    with torch.device("meta"):
        model = auto_class_for(config).from_config(config, attn_implementation=ATTENTION_NAME)
    assert Target(model).max_positions == 30
    assert make_skeleton(CONFIGS["llama"], None).target.max_positions == 512


def test_windows_that_attention_is_told_are_taken() -> None:
    for config in (MORE_CONFIGS["gemma3_text"], CONFIGS["mistral"]):
        make_skeleton(config, None)


def scaled(kind: str, **fields: float) -> PretrainedConfig:
    config = LlamaConfig(**fields)
    config.model_type = kind
    return config


def test_logits_are_rescaled_as_each_model_does() -> None:
    logits = torch.randn(5)
    for config, expected in (
        (scaled("granite", logits_scaling=8.0), logits / 8),
        (scaled("hyperclovax", logits_scaling=8.0), logits * 8),
        (scaled("cohere2", logit_scale=0.25), logits * 0.25),
        (scaled("llama", logits_scaling=1.0), logits),
        (scaled("llama", final_logit_softcapping=2.0), torch.tanh(logits / 2) * 2),
    ):
        assert torch.equal(_logits_rescale(config)(logits), expected)
    for field in ("logits_scaling", "logit_scale", "output_multiplier"):
        with pytest.raises(UnsupportedModelError, match=f"{field} 3.0"):
            _logits_rescale(scaled("llama", **{field: 3.0}))


@pytest.mark.parametrize("kind", ["glm4_moe", "deepseek_v3"])
def test_a_heads_router_is_as_exact_as_its_targets(tmp_path: Path, kind: str) -> None:
    """Rounded to bfloat16 the correction would choose other experts."""
    folder = make_checkpoint(tmp_path, kind, **_experts_from_the_first(kind))
    model = load_tiny(folder, dtype=torch.bfloat16)
    assert model.head is not None
    tensors = dict(model.head.named_parameters()) | dict(model.head.named_buffers())
    types = {name: tensor.dtype for name, tensor in tensors.items() if tensor.is_floating_point()}
    # transformers 5.24 keeps the router's weight too.
    keeps = kept_in_float32(model.target.model, torch.bfloat16)
    kept = {name for name in types if keeps(name)}
    assert any(name.endswith("e_score_correction_bias") for name in kept)
    assert {types.pop(name) for name in kept} == {torch.float32}
    assert {*types.values()} == {torch.bfloat16}


def _experts_from_the_first(kind: str) -> dict[str, int]:
    return {"first_k_dense_replace": 0} if kind == "deepseek_v3" else {}


def test_no_class_of_transformers_has_defaults_that_are_refused() -> None:
    """They are the fields of public models: a limit that one of them breaks is too low."""
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        try:
            config = kind()
        except StrictDataclassError:
            # The class refuses its own.
            continue
        raw = json.loads(config.to_json_string(use_diff=False))
        assert check_fields(kind.__name__, raw) is raw


def test_a_value_for_each_layer_is_taken_where_one_for_all_is() -> None:
    """Step-3.5's rotary base is such a list."""
    raw = {"model_type": "llama", "rope_theta": [5e6, 1e4], "partial_rotary_factor": [0.5, 1.0]}
    assert check_fields("x", raw) is raw
    with pytest.raises(ModelError, match=r"x: rope_theta .* must be a number above 0"):
        check_fields("x", raw | {"rope_theta": [5e6, 0.0]})
