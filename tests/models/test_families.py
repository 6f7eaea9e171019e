"""Head families: the checkpoint's tensor names and ours are two names of the same things."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from cgbench.models.families import FAMILIES, HeadFamily
from cgbench.models.head import DraftHead
from tests.tiny import CONFIGS

MIMO_HEAD_SHAPES = {
    "model.mtp_layers.0.token_layernorm.weight": (32,),
    "model.mtp_layers.0.hidden_layernorm.weight": (32,),
    "model.mtp_layers.0.input_proj.weight": (32, 64),
    "model.mtp_layers.0.final_layernorm.weight": (32,),
    "model.mtp_layers.0.input_layernorm.weight": (32,),
    "model.mtp_layers.0.post_attention_layernorm.weight": (32,),
    "model.mtp_layers.0.self_attn.q_proj.weight": (32, 32),
    "model.mtp_layers.0.self_attn.q_proj.bias": (32,),
    "model.mtp_layers.0.self_attn.k_proj.weight": (16, 32),
    "model.mtp_layers.0.self_attn.k_proj.bias": (16,),
    "model.mtp_layers.0.self_attn.v_proj.weight": (16, 32),
    "model.mtp_layers.0.self_attn.v_proj.bias": (16,),
    "model.mtp_layers.0.self_attn.o_proj.weight": (32, 32),
    "model.mtp_layers.0.mlp.gate_proj.weight": (48, 32),
    "model.mtp_layers.0.mlp.up_proj.weight": (48, 32),
    "model.mtp_layers.0.mlp.down_proj.weight": (32, 48),
}
"""MiMo's public names, with the tiny shape's sizes."""


def make_head(family: HeadFamily, kind: str) -> DraftHead:
    with torch.device("meta"):
        return DraftHead(family, AutoModelForCausalLM.from_config(CONFIGS[kind]))


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_map_one_to_one(family: HeadFamily, kind: str) -> None:
    ours = list(make_head(family, kind).state_dict())
    theirs = [family.tensor_name(name) for name in ours]
    assert len(set(theirs)) == len(ours)
    assert all(name.startswith(family.prefix) for name in theirs)
    assert [family.module_name(name) for name in theirs] == ours


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_renamed_module_exists(family: HeadFamily) -> None:
    modules = dict(make_head(family, "qwen2").named_modules())
    assert set(family.renamed.values()) <= set(modules)


def test_mimo_names_and_shapes_are_the_public_ones() -> None:
    expected = make_head(FAMILIES[0], "mimo").expected_tensors()
    assert {name: tuple(shape) for name, shape in expected.items()} == MIMO_HEAD_SHAPES
