"""Turn MODEL into what another engine loads: a folder, or a hub id.

A preset becomes a folder with the public model's ``config.json`` and no weights. The engine makes
up weights itself. The names of a head's fields and of architectures are those of public
checkpoints, as vLLM 0.26 reads them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cgbench.errors import BadInputError, UnsupportedModelError
from cgbench.inputs import JsonObject
from cgbench.models.presets import PRESETS, Preset
from cgbench.request.model_ref import DEFAULT_MODEL, DEFAULT_MODEL_DIR, preset_name

MIMO_CODE = '''"""MiMo's configuration, which transformers does not know."""

from transformers.models.qwen2.configuration_qwen2 import Qwen2Config


class MiMoConfig(Qwen2Config):
    model_type = "mimo"
    num_nextn_predict_layers: int = 1
'''


@dataclass(frozen=True, slots=True)
class EngineHead:
    """An ``EngineHead`` states how a model type's config names its MTP head for engines.

    ``fields`` are added to the text config. ``architecture`` is set where transformers' own name is
    not the checkpoint's. ``wrapper`` is the model type of the config around the text config.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    wrapper: str | None = None


_NEXTN = {"num_nextn_predict_layers": 1}
_MTP = {"mtp_num_hidden_layers": 1}

HEADS: dict[str, EngineHead] = {
    "mimo": EngineHead(_NEXTN, "MiMoForCausalLM"),
    "ernie4_5_moe": EngineHead({**_NEXTN, "moe_use_aux_free": True}, "Ernie4_5_MoeForCausalLM"),
    "deepseek_v3": EngineHead(
        {
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "moe_layer_freq": 1,
            "attention_bias": False,
            **_NEXTN,
        }
    ),
    "glm4_moe": EngineHead(_NEXTN),
    "glm4_moe_lite": EngineHead(_NEXTN),
    "qwen3_next": EngineHead(_NEXTN),
    "qwen3_5_text": EngineHead(
        {**_MTP, "attn_output_gate": True}, "Qwen3_5ForConditionalGeneration", "qwen3_5"
    ),
    "qwen3_5_moe_text": EngineHead(
        {**_MTP, "attn_output_gate": True}, "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe"
    ),
}
"""Model types whose MTP head engines read from the checkpoint itself. Others serve k = 0 alone."""

_ARCHITECTURES = {"step3p5": "Step3p5ForCausalLM"}
"""Architectures of checkpoints whose type is not in every transformers."""

_ALSO: dict[str, JsonObject] = {
    "qwen3_moe": {"attention_bias": False, "mlp_only_layers": []},
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A ``ServedModel`` is MODEL as another engine takes it.

    ``path`` is a folder or hub id. ``is_dummy`` asks the engine for weights of its own.
    ``has_own_code`` marks a folder whose configuration class was written here. ``no_drafts`` is
    the reason why the engine has no head of it, or empty.
    """

    path: str
    fingerprint: str
    is_dummy: bool = False
    has_own_code: bool = False
    no_drafts: str = ""


def served_model(ref: str, folder: Path) -> ServedModel:
    """Return MODEL for an engine. A preset is written to ``folder``.

    Raise ``UnsupportedModelError`` for a preset in FP8, and ``BadInputError`` for a GGUF file.
    """
    name = preset_name(ref)
    if name is not None:
        return write_preset(PRESETS[name], folder)
    path = DEFAULT_MODEL_DIR if ref == DEFAULT_MODEL else Path(ref)
    if path.suffix == ".gguf":
        raise BadInputError(f"MODEL {ref}: engines take a folder of safetensors here")
    if path.is_dir():
        return ServedModel(str(path.resolve()), _digest_of_folder(path))
    return ServedModel(ref, _digest(ref))


def write_preset(preset: Preset, folder: Path) -> ServedModel:
    """Write a preset's configuration as a checkpoint folder without weights."""
    if preset.is_fp8:
        raise UnsupportedModelError(
            f"MODEL preset:{preset.name}: engines run presets in bfloat16 here. "
            f"Use preset:{preset.name.removesuffix('-fp8')}"
        )
    config = engine_config(preset)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    eos = json.dumps({"eos_token_id": preset.config.get("eos_token_id", 2)})
    (folder / "generation_config.json").write_text(eos, encoding="utf-8")
    is_mimo = preset.config["model_type"] == "mimo"
    if is_mimo:
        (folder / "configuration_mimo.py").write_text(MIMO_CODE, encoding="utf-8")
    has_head = preset.config["model_type"] in HEADS
    headless = f"preset {preset.name} is written for engines without an MTP head"
    return ServedModel(
        str(folder.resolve()),
        _digest(text),
        is_dummy=True,
        has_own_code=is_mimo,
        no_drafts="" if has_head else headless,
    )


def engine_config(preset: Preset) -> JsonObject:
    """Return the ``config.json`` of a preset, as public checkpoints of its type have it."""
    model_type = preset.config["model_type"]
    head = HEADS.get(model_type, EngineHead())
    text: JsonObject = {
        "torch_dtype": "bfloat16",
        **preset.config,
        **_ALSO.get(model_type, {}),
        **{key: value for key, value in head.fields.items() if key not in preset.config},
    }
    text.setdefault("hidden_act", "silu")
    if model_type == "mimo":
        text["auto_map"] = {"AutoConfig": "configuration_mimo.MiMoConfig"}
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | _ARCHITECTURES
    architecture = head.architecture or named[model_type]
    if head.wrapper is None:
        return {"architectures": [architecture], **text}
    return {
        "architectures": [architecture],
        "model_type": head.wrapper,
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "torch_dtype": "bfloat16",
        **_SIGHT_TOKENS,
        "vision_config": _small_sight(head.wrapper, text["hidden_size"]),
    }


_SIGHT_TOKENS = {
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}


def _small_sight(model_type: str, hidden_size: int) -> JsonObject:
    """Return a vision tower that is as small as can be, because nothing here sees."""
    return {
        "deepstack_visual_indexes": [],
        "depth": 2,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_heads": 4,
        "in_channels": 3,
        "out_hidden_size": hidden_size,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "model_type": model_type,
    }


def _digest_of_folder(path: Path) -> str:
    """Return a digest of the configuration, and of the names and sizes of the other files."""
    config = path / "config.json"
    parts = [config.read_text(encoding="utf-8") if config.is_file() else ""]
    parts += [f"{file.name} {file.stat().st_size}" for file in sorted(path.glob("*.safetensors"))]
    return _digest("\n".join(parts))


def _digest(text: str) -> str:
    return "engine-" + hashlib.sha256(text.encode()).hexdigest()[:16]
