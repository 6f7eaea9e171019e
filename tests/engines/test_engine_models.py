"""Presets as checkpoints that engines load: public fields, and the head in their layout."""

import json
from pathlib import Path

import pytest
from transformers import Qwen2Config

from cgbench.engines.drivers.transformers_driver import config_of
from cgbench.engines.engine_models import HEADS, engine_config, served_model
from cgbench.errors import BadInputError, UnsupportedModelError
from cgbench.models.presets import PRESETS
from tests.support.tiny import make_checkpoint


@pytest.mark.parametrize("name", [name for name, each in PRESETS.items() if not each.is_fp8])
def test_every_preset_has_a_config_with_an_architecture(name: str) -> None:
    config = engine_config(PRESETS[name])
    text = config.get("text_config", config)
    assert config["architectures"][0].endswith(("ForCausalLM", "ForConditionalGeneration"))
    assert text.items() >= PRESETS[name].config.items()
    assert config["torch_dtype"] == "bfloat16"


def test_heads_are_in_the_layout_that_engines_read() -> None:
    mimo = engine_config(PRESETS["mimo-7b"])
    assert mimo["architectures"] == ["MiMoForCausalLM"] and mimo["num_nextn_predict_layers"] == 1
    ernie = engine_config(PRESETS["ernie-4.5-21b-a3b"])
    assert ernie["architectures"] == ["Ernie4_5_MoeForCausalLM"]
    assert ernie["num_nextn_predict_layers"] == 1
    hybrid = engine_config(PRESETS["qwen3.5-35b-a3b"])
    assert hybrid["model_type"] == "qwen3_5_moe"
    assert hybrid["text_config"]["mtp_num_hidden_layers"] == 1
    assert hybrid["vision_config"]["out_hidden_size"] == hybrid["text_config"]["hidden_size"]


def test_a_preset_is_a_folder_without_weights(tmp_path: Path) -> None:
    served = served_model("preset:mimo-7b", tmp_path / "model")
    assert served.is_dummy and served.has_own_code and served.no_drafts == ""
    files = {file.name for file in Path(served.path).iterdir()}
    assert files == {"config.json", "generation_config.json", "configuration_mimo.py"}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "mimo"
    assert isinstance(config_of(served.path), Qwen2Config)


def test_a_preset_whose_head_no_engine_has_serves_no_drafts(tmp_path: Path) -> None:
    served = served_model("preset:qwen3-30b-a3b", tmp_path / "model")
    assert "without an MTP head" in served.no_drafts and not served.has_own_code
    assert "qwen3_moe" not in HEADS


def test_what_engines_do_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="Use preset:mimo-7b"):
        served_model("preset:mimo-7b-fp8", tmp_path / "model")
    with pytest.raises(BadInputError, match="engines take a folder"):
        served_model("x.gguf", tmp_path / "model")


def test_the_fingerprint_of_a_folder_follows_its_content(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "mimo")
    first = served_model(str(folder), tmp_path / "model")
    assert first == served_model(str(folder), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert served_model(str(folder), tmp_path / "model").fingerprint != first.fingerprint
