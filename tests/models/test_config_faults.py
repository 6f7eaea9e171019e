"""What transformers finds wrong with a config is one line that names the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import ExitCode, ModelError
from cgbench.models.checkpoint import read_config
from cgbench.models.skeleton import make_target, with_head
from tests.support.tiny import CONFIGS, MORE_CONFIGS

FAULTS = [
    (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        "Missing required keys in `rope_parameters` for 'rope_type'='yarn': {'factor'}",
    ),
    ("qwen3", {"hidden_act": "bogus"}, "hidden_act: bogus is unknown to transformers"),
    (
        "mimo_v2_flash",
        {"mlp_layer_types": ["dense", "sparse"]},
        "`num_hidden_layers` (3) must be equal to the number of `mlp_layer_types` (2)",
    ),
    (
        "mimo_v2_flash",
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "sliding_attention, of layer_types, has no entry in a field that has one a type of layer",
    ),
    (
        "step3p5",
        {"swiglu_limits": [0.0]},
        "swiglu_limits: has 1 of the 3 entries that num_hidden_layers wants",
    ),
    (
        "step3p5",
        {"moe_layers_enum": "1,b", "mlp_layer_types": None},
        "moe_layers_enum: b is no number",
    ),
]


@pytest.mark.parametrize(("kind", "changes", "words"), FAULTS)
def test_the_field_is_named(kind: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps((CONFIGS | MORE_CONFIGS)[kind].to_dict() | changes))
    with pytest.raises(ModelError) as error:
        with_head(make_target(read_config(str(tmp_path)), f"MODEL {file}"), None)
    assert str(error.value).startswith(f"MODEL {file}: ")
    assert str(error.value).endswith(words)
    assert error.value.exit_code is ExitCode.BAD_INPUT and "\n" not in str(error.value)
