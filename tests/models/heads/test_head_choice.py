"""The family is chosen by tensor names and model type together, and never guessed from names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cgbench.errors import BadInputError, MissingHeadError, ModelError
from cgbench.models.heads.families import (
    DEEPSEEK,
    EAGLE,
    ERNIE,
    EXAONE,
    FAMILIES,
    HY,
    MELLUM,
    MIMO,
    QWEN,
    HeadFamily,
)
from cgbench.models.heads.head import HeadForm
from cgbench.models.heads.head_wiring import CONFIG_FIELD
from tests.support.bigram_layouts import (
    HIDDEN,
    acceptance_length,
    load,
    make_bigram_layout,
    read,
    write,
)
from tests.support.tiny import edit_config, load_tiny, make_checkpoint


def with_norms(folder: Path, family: HeadFamily, values: tuple[float, float]) -> Path:
    """The first of ``values`` in one half of the embedding norm's weights, the second in the other.
    A weight of zero loses the feature, and with it the token; a sign is taken back at once."""
    tensors = read(folder)
    weights = torch.tensor(values).repeat_interleave(HIDDEN // 2)
    scale = weights + 1 if family.norm_form == "one_plus" else weights
    proj = family.tensor_name("proj.weight")
    signed = tensors[proj].clone()
    signed[:, :HIDDEN] *= scale
    norm = {family.tensor_name("embed_norm.weight"): weights}
    write(folder, tensors | {proj: signed} | norm)
    return folder


@pytest.mark.parametrize(
    ("kind", "family", "values"),
    [
        ("exaone4_5", EXAONE, (1.0, -1.0)),
        ("exaone_moe", EXAONE, (1.0, -1.0)),
        ("mellum", MELLUM, (1.0, -1.0)),
        ("qwen3_5_text", QWEN, (0.0, -2.0)),
        ("qwen3_next", QWEN, (0.0, -2.0)),
    ],
)
def test_one_set_of_names_has_each_its_own_norms(
    kind: str, family: HeadFamily, values: tuple[float, float], tmp_path: Path
) -> None:
    """A head that is right with its own form of norms alone: all drafts are kept, 4.00 at k = 3."""
    is_one_plus = family.norm_form == "one_plus"
    folder = make_bigram_layout(tmp_path, kind, family, one_plus=is_one_plus)
    model = load(with_norms(folder, family, values))
    assert model.head is not None and model.head.family == family
    assert acceptance_length(model) == 4.0
    other = load(folder, norm_form="plain" if is_one_plus else "one_plus")
    assert acceptance_length(other) < 3.0


def test_a_type_that_no_family_knows_is_not_guessed(tmp_path: Path) -> None:
    """The message says what to choose from, and what differs between the choices."""
    folder = make_checkpoint(tmp_path, "llama", family=QWEN)
    edit_config(folder, **{CONFIG_FIELD: {}})
    with pytest.raises(MissingHeadError) as error:
        load_tiny(folder)
    assert str(error.value) == (
        f"{folder}: has mtp.fc.weight, but no head family is known for model type llama. State one "
        "with --head-family: qwen (norm_form one_plus); exaone (norm_form plain); mellum "
        "(norm_form plain)"
    )
    for name in ("qwen", "exaone", "mellum"):
        head = load(folder, family=name).head
        assert head is not None and head.family == FAMILIES[name]


def test_a_sole_candidate_is_not_guessed_either(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3", family=MIMO)
    edit_config(folder, **{CONFIG_FIELD: {}})
    words = r"model type qwen3. .*: mimo \(concat HE, hidden_in post, chain post, out_norm own"
    with pytest.raises(MissingHeadError, match=words):
        load_tiny(folder)


def test_names_of_one_family_with_the_type_of_another_are_not_guessed(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "glm4_moe", family=MIMO)
    edit_config(folder, **{CONFIG_FIELD: {}})
    with pytest.raises(MissingHeadError, match="known for model type glm4_moe"):
        load_tiny(folder)


@pytest.mark.parametrize(
    ("kind", "form"), [("exaone_moe", HeadForm(dense=True)), ("glm4_moe", HeadForm(dense=True))]
)
def test_a_dense_block_beside_a_mixture_of_experts(
    kind: str, form: HeadForm, tmp_path: Path
) -> None:
    """As K-EXAONE ships it: the files say what the block is, not the target's layers."""
    family = EXAONE if kind == "exaone_moe" else DEEPSEEK
    head = load_tiny(make_checkpoint(tmp_path, kind, family=family, form=form)).head
    assert head is not None and head.block.mlp.gate_proj.weight.shape == (48, 32)


@pytest.mark.parametrize("kind", ["exaone_moe", "glm4_moe", "qwen3_next", "mellum"])
def test_a_block_of_experts_where_the_target_has_them(kind: str, tmp_path: Path) -> None:
    family = {"exaone_moe": EXAONE, "glm4_moe": DEEPSEEK, "qwen3_next": QWEN, "mellum": MELLUM}
    head = load_tiny(make_checkpoint(tmp_path, kind, family=family[kind])).head
    assert head is not None and head.block.mlp.experts.down_proj.shape == (8, 32, 16)


def test_exaones_block_attends_as_its_first_layer(tmp_path: Path) -> None:
    """As in vLLM's exaone4_5_mtp; full layers of that model have no rotary positions at all."""
    model = load_tiny(make_checkpoint(tmp_path / "first", "exaone4", family=EXAONE))
    assert model.head is not None and model.head.block.self_attn.is_sliding
    stated = make_checkpoint(tmp_path / "stated", "exaone_moe", family=EXAONE)
    edit_config(stated, mtp_layer_types=["full_attention"])
    head = load_tiny(stated).head
    assert head is not None and not head.block.self_attn.is_sliding


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_a_head_under_the_prefix_of_the_targets_layers(prefix: str, tmp_path: Path) -> None:
    """As GLM-OCR keeps it. The target's own names are those that transformers reads there."""
    folder = make_checkpoint(tmp_path / "target", "glm4_moe", family=DEEPSEEK)
    tensors = read(folder)
    apart = tmp_path / "head"
    apart.mkdir()
    own = {name: t for name, t in tensors.items() if name.startswith("model.layers.2.")}
    moved = {name.replace("model.", prefix, 1): tensor for name, tensor in own.items()}
    save_file(moved, apart / "model.safetensors")
    expected, got = load_tiny(folder).head, load(folder, apart).head
    assert expected is not None and got is not None
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, got.state_dict()[name])


def test_absence_is_claimed_after_every_prefix_was_looked_under(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "step3p7", family=FAMILIES["step"])
    kept = {name: t for name, t in read(folder).items() if "layers.2." not in name}
    moved = {
        name.replace("model.layers", "model.language_model.layers"): kept[name] for name in kept
    }
    write(folder, moved)
    places = r"model\.layers\.2\.eh_proj\.weight.*model\.language_model\.layers\.2\.eh_proj"
    with pytest.raises(MissingHeadError, match=f"no MTP head tensors .*{places}"):
        load_tiny(folder)


STATED = {"family": "mimo", "hidden_in": "pre", "chain": "pre", "first_embed": "kept"}


def test_a_checkpoint_states_its_heads_wiring(tmp_path: Path) -> None:
    """Under its family's own name; a flag goes before what is stated, and shows."""
    folder = make_checkpoint(tmp_path, "llama")
    edit_config(folder, **{CONFIG_FIELD: STATED})
    model = load(folder)
    assert model.head is not None and model.head_label == "mimo"
    family = model.head.family
    assert (family.hidden_in, family.chain, family.first_embed) == ("pre", "pre", "kept")
    flagged = load(folder, chain="post")
    assert flagged.head is not None and flagged.head_label == "mimo[chain=post]"
    assert (flagged.head.family.hidden_in, flagged.head.family.chain) == ("pre", "post")
    stated = load(folder, family="mimo").head
    assert stated is not None and stated.family == family


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("pre", "must be an object"),
        ({"chained": "pre"}, "has 'chained'. Its fields are family, concat"),
        ({"chain": "before"}, "chain must be one of pre, post, not 'before'"),
        ({"family": ["mimo"]}, r"family must be one of mimo, mimo_v2, .*not \['mimo'\]"),
    ],
)
def test_what_a_checkpoint_states_wrongly_is_named(
    field: object, words: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    edit_config(folder, **{CONFIG_FIELD: field})
    with pytest.raises(ModelError, match=f"config.json: {CONFIG_FIELD}.*{words}"):
        load_tiny(folder)


def test_ernie_as_vllm_and_sglang_wire_it(tmp_path: Path) -> None:
    """Post, post and no norm before the lm_head; FastDeploy's form is the family's."""
    folder = make_checkpoint(tmp_path, "ernie4_5_moe", family=ERNIE)
    head = load(folder, hidden_in="post", chain="post", out_norm="none").head
    assert head is not None and ERNIE.out_norm == "target"
    states = torch.randn(1, 1, 32)
    assert torch.equal(head.to_logits_input(states), states)
    with pytest.raises(BadInputError, match="--head-out-norm own: heads of family ernie have no"):
        load(folder, out_norm="own")


def test_another_output_norm_leaves_the_heads_own_in_the_file(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    head = load(folder, out_norm="target").head
    assert head is not None and isinstance(head.out_norm, torch.nn.Identity)


def test_who_feeds_and_chains_what() -> None:
    """The engines' forms: vLLM 0.33.0, SGLang 0.5.23, FastDeploy."""
    wiring = {
        name: (f.hidden_in, f.chain, f.out_norm, f.first_embed) for name, f in FAMILIES.items()
    }
    assert wiring == {
        "mimo": ("post", "post", "own", "zeroed"),
        "mimo_v2": ("post", "post", "own", "kept"),
        "deepseek": ("post", "post", "own", "zeroed"),
        "hy": ("post", "post", "own", "zeroed"),
        "step": ("pre", "pre", "own", "kept"),
        "qwen": ("post", "post", "own", "kept"),
        "exaone": ("post", "post", "own", "kept"),
        "mellum": ("post", "post", "own", "kept"),
        "ernie": ("pre", "pre", "target", "zeroed"),
        "speculators": ("post", "post", "own", "kept"),
        "eagle": ("post", "post", "none", "kept"),
        # Its hidden states are those of layers.
        "eagle3": ("post", "pre", "own", "kept"),
        # Its only forward is fed states of layers, and chains nothing.
        "dflash": ("post", "post", "own", "kept"),
    }


def test_no_two_families_claim_one_name_and_type() -> None:
    for one in FAMILIES.values():
        for other in FAMILIES.values():
            if one is not other and one.own_names(2) == other.own_names(2):
                assert not (one.model_types or set()) & (other.model_types or set())


def test_which_of_several_modules_draft_is_said_in_the_label(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "mimo")
    tensors = read(folder)
    more = {
        n.replace("layers.0", f"layers.{i}"): t
        for i in (1, 2)
        for n, t in tensors.items()
        if "mtp" in n
    }
    write(folder, tensors | more)
    assert load(folder).head_label == "mimo (3 modules)"
    assert load(folder, mtp_modules=1).head_label == "mimo (module 1 of 3)"
    target = make_checkpoint(tmp_path / "target", "mimo")
    assert load(target, folder).head_label == "mimo:tiny (3 modules)"


def moved_names(folder: Path, family: HeadFamily, other: HeadFamily, name: str) -> None:
    """One of the head's modules under the name that another family has for it."""
    old, new = (each.tensor_name(f"{name}.weight", 2) for each in (family, other))
    write(folder, {new if n == old else n: tensor for n, tensor in read(folder).items()})


def test_a_type_of_one_family_with_the_names_of_another_lists_both(tmp_path: Path) -> None:
    """DeepSeek's and Hy's names differ in the output norm's alone."""
    folder = make_checkpoint(tmp_path, "glm4_moe", family=DEEPSEEK)
    moved_names(folder, DEEPSEEK, HY, "out_norm")
    with pytest.raises(MissingHeadError) as error:
        load_tiny(folder)
    assert str(error.value) == (
        f"{folder}: has model.layers.2.final_layernorm.weight, but heads of model type glm4_moe "
        "are of family deepseek. State one with --head-family: deepseek; hy"
    )
    head = load(folder, family="hy").head
    assert head is not None and head.family == HY


def test_a_name_that_is_missing_is_said_of_the_types_family(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "glm4_moe", family=DEEPSEEK)
    tensors = read(folder)
    del tensors["model.layers.2.enorm.weight"]
    write(folder, tensors)
    with pytest.raises(MissingHeadError, match=r"lacks model\.layers\.2\.enorm\.weight$"):
        load_tiny(folder)


def test_a_projection_of_another_shape_is_no_head_of_the_family(tmp_path: Path) -> None:
    target = make_checkpoint(tmp_path / "target", "llama", family=EAGLE)
    head = tmp_path / "head"
    head.mkdir()
    own = {n: t for n, t in read(target).items() if n.startswith(("fc.", "layers."))}
    write(head, own | {"fc.weight": torch.zeros(32, 96)})
    words = r"fc\.weight is \(32, 96\), not \(32, 64\) as the projection of eagle"
    with pytest.raises(MissingHeadError, match=words):
        load(target, head)


@pytest.mark.parametrize("field", ["num_mtp_modules", "use_mtp", "mtp_num_layers"])
def test_what_declares_a_head_is_named_where_none_is_shipped(field: str, tmp_path: Path) -> None:
    """As MiniMax-M2, which declares modules and ships none."""
    folder = make_checkpoint(tmp_path, "qwen3")
    write(folder, {n: t for n, t in read(folder).items() if "mtp" not in n})
    value = True if field == "use_mtp" else 3
    edit_config(folder, **{field: value, CONFIG_FIELD: {}})
    said = "true" if field == "use_mtp" else "3"
    words = f"config.json declares {field} {said}, but the checkpoint ships no MTP head tensors"
    with pytest.raises(MissingHeadError, match=words):
        load_tiny(folder)


def test_a_head_in_mtp_safetensors_is_read_beside_an_index_and_alone(tmp_path: Path) -> None:
    """The index names none of its tensors; as a head's folder it needs no other file."""
    folder = make_checkpoint(tmp_path / "target", "mimo")
    whole = load_tiny(folder).head
    assert whole is not None
    tensors = read(folder)
    head = {name: tensor for name, tensor in tensors.items() if "mtp_layers" in name}
    rest = {name: tensor for name, tensor in tensors.items() if name not in head}
    (folder / "model.safetensors").unlink()
    save_file(rest, folder / "one.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(rest, "one.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(head, folder / "mtp.safetensors")
    apart = tmp_path / "apart"
    apart.mkdir()
    save_file(head, apart / "mtp.safetensors")
    for found in (load_tiny(folder).head, load(folder, apart).head):
        assert found is not None
        for name, tensor in whole.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt"])
def test_a_head_that_is_pickled_is_refused_unopened(name: str, tmp_path: Path) -> None:
    """As some EAGLE heads are published. The file is no pickle, so opening it would fail."""
    target = make_checkpoint(tmp_path / "target", "llama")
    head = tmp_path / "head"
    head.mkdir()
    (head / "config.json").write_text("{}")
    (head / name).write_bytes(b"not opened")
    said = rf"{name}\), and cgbench unpickles nothing, .* Convert them to model.safetensors"
    with pytest.raises(ModelError, match=said):
        load(target, head=head)
