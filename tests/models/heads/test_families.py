"""Head families: a checkpoint of each layout loads whole, decodes losslessly, drafts as stated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cgbench.engine.iteration import Speculator
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.errors import BadInputError, MissingHeadError
from cgbench.models.heads.families import (
    DEEPSEEK,
    EAGLE,
    FAMILIES,
    MIMO,
    MIMO_V2,
    QWEN,
    HeadFamily,
)
from cgbench.models.heads.head import DraftHead, HeadForm
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading, LoadingPlan, plan_loading
from cgbench.request.parts import HeadWiring
from tests.support.tiny import (
    CONFIGS,
    add_head,
    checkpoint_tensors,
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    randomise,
    reference_model,
)

MAX_NEW_TOKENS = 8
ROOM = 24 + MAX_NEW_TOKENS + 2 * 3

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

TARGETS = {
    "mimo": ["mimo", "qwen3_moe", "gemma3_text", "gpt_oss"],
    "mimo_v2": ["mimo_v2_flash"],
    "deepseek": ["deepseek_v3", "glm4_moe"],
    "hy": ["hy_v3"],
    "step": ["step3p7", "step3p5"],
    "qwen": ["qwen3_next", "qwen3_5_text"],
    "exaone": ["exaone_moe", "exaone4"],
    "mellum": ["mellum"],
    "ernie": ["ernie4_5_moe"],
    "speculators": ["qwen3"],
    "eagle": ["llama"],
}
"""The targets that each family's heads were published with, or the nearest that is tiny."""

CASES = [
    pytest.param(FAMILIES[name], kind, id=f"{name}-{kind}")
    for name, kinds in TARGETS.items()
    for kind in kinds
]

# Some names that the public checkpoint of each family has, at the tiny target's two layers.
PUBLIC_NAMES = {
    "mimo": ["model.mtp_layers.0.input_proj.weight", "model.mtp_layers.0.mlp.up_proj.weight"],
    "mimo_v2": [
        "model.mtp.layers.0.enorm.weight",
        "model.mtp.layers.0.hnorm.weight",
        "model.mtp.layers.0.eh_proj.weight",
        "model.mtp.layers.0.final_layernorm.weight",
        "model.mtp.layers.0.pre_mlp_layernorm.weight",
        "model.mtp.layers.0.self_attn.attention_sink_bias",
        "model.mtp.layers.2.mlp.up_proj.weight",
    ],
    "deepseek": [
        "model.layers.2.eh_proj.weight",
        "model.layers.2.enorm.weight",
        "model.layers.2.hnorm.weight",
        "model.layers.2.shared_head.norm.weight",
        "model.layers.2.mlp.experts.7.gate_proj.weight",
        "model.layers.2.mlp.shared_experts.down_proj.weight",
        "model.layers.2.mlp.gate.e_score_correction_bias",
    ],
    "hy": [
        "model.layers.2.final_layernorm.weight",
        "model.layers.2.mlp.router.gate.weight",
        "model.layers.2.mlp.shared_mlp.up_proj.weight",
    ],
    "step": ["model.layers.2.eh_proj.weight", "model.layers.2.self_attn.q_proj.weight"],
    "qwen": [
        "mtp.fc.weight",
        "mtp.pre_fc_norm_embedding.weight",
        "mtp.pre_fc_norm_hidden.weight",
        "mtp.norm.weight",
        "mtp.layers.0.self_attn.q_norm.weight",
    ],
    "exaone": ["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"],
    "mellum": ["mtp.fc.weight", "mtp.layers.0.mlp.experts.0.up_proj.weight"],
    "ernie": [
        "model.mtp_emb_norm.0.weight",
        "model.mtp_hidden_norm.0.weight",
        "model.mtp_linear_proj.0.weight",
        "model.mtp_block.0.mlp.up_proj.weight",
    ],
    "speculators": ["mtp_layers.0.input_proj.weight", "mtp_layers.0.self_attn.o_proj.weight"],
    "eagle": ["fc.weight", "layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight"],
}


# Targets of experts whose heads are dense, and families that ship several modules.
DENSE = ("exaone_moe", "mimo_v2_flash", "step3p5")
NUM_MODULES = {"mimo_v2": 3, "step": 3}

# What the public checkpoints call what transformers renames.
PUBLIC = {
    "hy": {
        ".mlp.gate.weight": ".mlp.router.gate.weight",
        ".mlp.e_score_correction_bias": ".mlp.expert_bias",
        ".mlp.shared_experts.": ".mlp.shared_mlp.",
    },
    # An infix after the layer's number in some of the head's tensors.
    "step": {".2.shared_head.": ".2.transformer.shared_head."},
    "mimo_v2": {
        ".post_attention_layernorm.": ".pre_mlp_layernorm.",
        ".self_attn.sinks": ".self_attn.attention_sink_bias",
    },
    "exaone": {".mlp.gate.e_score_correction_bias": ".mlp.e_score_correction_bias"},
}


def layout(folder: Path, family: HeadFamily, kind: str) -> Path:
    """A checkpoint of ``kind`` with a head of ``family``, and the copies such checkpoints carry."""
    dense = HeadForm(dense=True) if kind in DENSE else None
    modules = NUM_MODULES.get(family.name, 1)
    make_checkpoint(folder, kind, family=family, seed=3, form=dense, num_modules=modules)
    if family is DEEPSEEK:
        embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
        add_head(folder, {"model.layers.2.embed_tokens.weight": embedding})
    tensors = load_file(folder / "model.safetensors")
    renamed = {public(name, family): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def public(name: str, family: HeadFamily) -> str:
    if family is MIMO_V2 and ".mtp." not in name:
        # Its modules alone have names that its layers have not.
        return name
    for ours, theirs in PUBLIC.get(family.name, {}).items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_checkpoint_of_the_layout_loads_whole_and_decodes_losslessly(
    family: HeadFamily, kind: str, tmp_path: Path
) -> None:
    """Loading refuses a head tensor missing or unused, and puts every expert in its place. Batch 1
    and a ragged batch of 3."""
    folder = layout(tmp_path, family, kind)
    stored = load_file(folder / "model.safetensors")
    if kind == TARGETS[family.name][0]:
        assert set(PUBLIC_NAMES[family.name]) <= set(stored)
    model = load_tiny(folder)
    assert model.head is not None and model.head.family == family
    for name, tensor in checkpoint_tensors(model.head).items():
        kept = stored.get(public(name, family))
        assert kept is not None and torch.equal(kept, tensor), name
    prompts = random_prompts(3, seed=1)
    expected = greedy_reference(reference_model(folder), prompts, MAX_NEW_TOKENS)
    spec = make_speculator(model, max_batch_size=5, room=ROOM)
    assert decode(spec, prompts, 3) == expected
    assert decode(spec, prompts[:1], 1) == expected[:1]


def decode(spec: Speculator, prompts: list[list[int]], k: int) -> list[list[int]]:
    runner = EagerRunner(spec, make_state(spec, k, 5))
    return decode_prompts(spec, runner, prompts, MAX_NEW_TOKENS, max_num_tokens=64).token_ids


def test_mimo_names_and_shapes_are_the_public_ones() -> None:
    with torch.device("meta"):
        head = DraftHead(MIMO, AutoModelForCausalLM.from_config(CONFIGS["mimo"]))
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint_tensors(head).items()}
    assert shapes == MIMO_HEAD_SHAPES


def test_every_table_entry_names_each_module_once() -> None:
    for name, family in FAMILIES.items():
        assert family.name == name
        assert {"proj", "block"} <= set(family.names)
        assert ("out_norm" in family.names) == (family.out_norm == "own")
        assert ("embed_norm" in family.names) == family.input_norms


def plan(folder: Path, head: Path | None = None, **overrides: Any) -> LoadingPlan:
    """What would be loaded, on the CPU in float32."""
    head_ref = None if head is None else str(head)
    where = (torch.device("cpu"), torch.float32)
    return plan_loading(
        Loading(str(folder), head_ref, True, *where, wiring=HeadWiring(**overrides))
    )


def test_an_eagle_head_comes_from_a_folder_of_its_own(tmp_path: Path) -> None:
    """Its fc may have a bias; its embedding is a copy of the target's."""
    folder = make_checkpoint(tmp_path / "target", "llama")
    head = DraftHead(EAGLE, reference_model(folder), HeadForm(proj_bias=True))
    randomise(head, 0.3)
    (tmp_path / "head").mkdir()
    save_file(checkpoint_tensors(head), tmp_path / "head" / "model.safetensors")
    loaded = load_model(plan(folder, tmp_path / "head"))
    assert loaded.head is not None and loaded.head_label == "eagle:head"
    assert torch.equal(loaded.head.proj.bias, head.proj.bias)


def test_a_bias_is_found_behind_a_numbered_projection(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    bias = torch.randn(32)
    add_head(folder, {"model.mtp_layers.0.input_proj.bias": bias})
    loaded = load_model(plan(folder))
    assert loaded.head is not None and torch.equal(loaded.head.proj.bias, bias)


def test_overrides_replace_the_familys_wiring_and_show_in_its_name(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    found = plan(folder, chain="post", hidden_in="post").family
    assert found == replace(
        MIMO,
        name="mimo[hidden_in=post,chain=post]",
        source=f"what is stated of hidden_in, chain, else {MIMO.source}",
        chain="post",
        hidden_in="post",
    )


def test_a_family_stated_by_name_is_looked_for_alone(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    with pytest.raises(
        MissingHeadError, match=r"looked for mtp\.fc\.weight, model\.mtp\.fc\.weight\)"
    ):
        plan(folder, family="qwen")
    with pytest.raises(
        BadInputError, match="--head-family gpt: choose one of mimo, mimo_v2, deepseek"
    ):
        plan(folder, family="gpt")


def test_first_embedding_zeroed_changes_the_drafts_only(tmp_path: Path) -> None:
    """Prompts of one token, so that the head's first row is the one draft 1 comes from."""
    folder = make_checkpoint(tmp_path, "mimo", seed=2)
    outputs, drafts = [], []
    for first_embed in ("kept", "zeroed"):
        spec = make_speculator(
            load_model(plan(folder, first_embed=first_embed)), max_batch_size=20, room=ROOM
        )
        outputs.append(decode(spec, [[token] for token in range(5)], 3))
        prefilled = prefill(spec, [[token] for token in range(20)], max_num_tokens=64)
        state = make_state(spec, 1, 20)
        begin_decoding(spec, state, prefilled, tokens_left=1)
        drafts.append(state.full.drafts.tolist())
    assert outputs[0] == outputs[1]
    assert drafts[0] != drafts[1]


def test_norms_of_the_1_plus_w_form_are_converted_for_a_target_of_the_other(
    tmp_path: Path,
) -> None:
    """Qwen's head layout on a Llama: w of the file means 1 + w."""
    folder = make_checkpoint(tmp_path, "llama", family=QWEN)
    head = load_tiny(folder).head
    assert head is not None
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(head.out_norm.weight, stored["mtp.norm.weight"] + 1)
    assert torch.equal(
        head.block.input_layernorm.weight, stored["mtp.layers.0.input_layernorm.weight"] + 1
    )
    assert torch.equal(head.proj.weight, stored["mtp.fc.weight"])


def test_a_declared_head_without_tensors_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "glm4_moe", family=DEEPSEEK)
    tensors = load_file(folder / "model.safetensors")
    target = {n: t for n, t in tensors.items() if not n.startswith("model.layers.2.")}
    save_file(target, folder / "model.safetensors", metadata={"format": "pt"})
    words = "declares num_nextn_predict_layers 1, but the checkpoint ships no MTP head tensors"
    with pytest.raises(MissingHeadError, match=rf"{words}.*model\.layers\.2\.eh_proj\.weight"):
        load_tiny(folder)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "deepseek_v3", family=DEEPSEEK)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.experts.5.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    lacks = r"lacks model\.layers\.2\.mlp\.experts\.5\.up_proj\.weight$"
    with pytest.raises(MissingHeadError, match=lacks):
        load_tiny(folder)


def test_fused_experts_are_read_as_they_are(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3_next", family=QWEN)
    apart = load_tiny(folder).head
    assert apart is not None
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith("mtp.layers.0.mlp.exp")}
    fused = {f"mtp.layers.0.{n}": t for n, t in apart.block.state_dict().items() if "experts." in n}
    assert any(name.endswith("gate_up_proj") for name in fused)
    save_file(kept | fused, folder / "model.safetensors", metadata={"format": "pt"})
    together = load_tiny(folder).head
    assert together is not None
    for name, tensor in apart.state_dict().items():
        assert torch.equal(tensor, together.state_dict()[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"scale": torch.ones(1)},
            r"is quantised \(model\.mtp_layers\.0\.input_proj\.weight_scale",
        ),
        ({"dtype": torch.float8_e4m3fn}, r"stored as F8_E4M3 \(model\.mtp_layers\.0\.input"),
    ],
)
def test_a_quantised_head_is_refused_by_name(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    name = "model.mtp_layers.0.input_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    if "scale" in change:
        tensors[f"{name}_scale_inv"] = change["scale"]
    else:
        tensors[name] = tensors[name].to(change["dtype"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingHeadError, match=words):
        load_tiny(folder)


def test_several_modules_are_counted_and_used(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    tensors = load_file(folder / "model.safetensors")
    second = {n.replace("layers.0", "layers.1"): t for n, t in tensors.items() if "mtp" in n}
    add_head(folder, second)
    model = load_tiny(folder)
    assert model.head is not None
    assert model.num_head_modules == model.head.num_modules == 2


def test_a_sharded_head_is_read_through_the_index(tmp_path: Path) -> None:
    """As GLM-4.6 keeps it: in a file of its own that no pattern would find."""
    folder = make_checkpoint(tmp_path, "glm4_moe", family=DEEPSEEK)
    whole = load_tiny(folder).head
    assert whole is not None
    shards = {"model-1.safetensors": {}, "mtp.safetensors": {}}
    for name, tensor in load_file(folder / "model.safetensors").items():
        own = name.startswith("model.layers.2.")
        shards["mtp.safetensors" if own else "model-1.safetensors"][name] = tensor
    (folder / "model.safetensors").unlink()
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    head = load_tiny(folder).head
    assert head is not None
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name])
