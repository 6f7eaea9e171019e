"""Matrices stored with a head: compared with the target's, and used where they differ."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cgbench.errors import MissingHeadError
from cgbench.floor.work import OWN_OUTPUT, Product, model_work
from cgbench.models.checkpoint import equal_values
from cgbench.models.heads.families import DEEPSEEK, EAGLE, HY, MIMO, STEP, HeadFamily
from cgbench.models.heads.head import HeadForm
from tests.support.bigram_layouts import (
    HIDDEN,
    VOCAB,
    acceptance_length,
    load,
    make_bigram_layout,
    read,
    table,
    write,
)
from tests.support.tiny import load_tiny, make_checkpoint

ROTATED = torch.eye(HIDDEN).roll(7, dims=0)
"""A change of features: a head that makes it is right with its own matrix alone."""


def with_own_output(folder: Path, family: HeadFamily, name: str, matrix: Tensor) -> None:
    """The head's projection turns its features, ``matrix`` under ``name`` is to turn them back."""
    tensors = read(folder)
    proj = family.tensor_name("proj.weight", family.first_number(2))
    write(folder, tensors | {proj: ROTATED @ tensors[proj], name: matrix})


LAYOUTS = [
    (STEP, "step3p7", "model.layers.2.transformer.shared_head.output.weight"),
    (STEP, "step3p7", "model.layers.2.shared_head.head.weight"),
    (DEEPSEEK, "glm4_moe", "model.layers.2.shared_head.head.weight"),
    (MIMO, "mimo", "model.mtp_layers.0.lm_head.weight"),
]


@pytest.mark.parametrize(("family", "kind", "name"), LAYOUTS)
def test_an_output_matrix_of_its_own_is_used(
    family: HeadFamily, kind: str, name: str, tmp_path: Path
) -> None:
    folder = make_bigram_layout(tmp_path, kind, family, one_plus=family is STEP)
    with_own_output(folder, family, name, table() @ ROTATED.T)
    model = load(folder)
    assert model.head is not None and model.head.output is not None
    assert acceptance_length(model) == 4.0
    # With the target's, of which it is not a copy, next to nothing is kept.
    model.head.output = None
    assert acceptance_length(model) < 1.5


def test_an_equal_copy_is_not_loaded_twice(tmp_path: Path) -> None:
    folder = make_bigram_layout(tmp_path, "glm4_moe", DEEPSEEK)
    copies = {
        "model.layers.2.shared_head.head.weight": table(),
        "model.layers.2.embed_tokens.weight": torch.eye(VOCAB, HIDDEN).bfloat16(),
    }
    write(folder, read(folder) | copies)
    model = load(folder)
    assert model.head is not None and model.head.output is None and model.head.embedding is None
    assert acceptance_length(model) == 4.0


def test_an_embedding_of_its_own_is_used(tmp_path: Path) -> None:
    folder = make_bigram_layout(tmp_path, "glm4_moe", DEEPSEEK)
    tensors = read(folder)
    proj = "model.layers.2.eh_proj.weight"
    turned = torch.cat([ROTATED.T, torch.zeros(HIDDEN, HIDDEN)], dim=1)
    own = torch.eye(VOCAB, HIDDEN) @ ROTATED.T
    write(folder, tensors | {proj: turned, "model.layers.2.embed_tokens.weight": own})
    model = load(folder)
    assert model.head is not None and model.head.embedding is not None
    assert acceptance_length(model) == 4.0
    model.head.embedding = None
    assert acceptance_length(model) < 1.5


def test_an_eagle_heads_lm_head_is_used_from_a_folder_of_its_own(tmp_path: Path) -> None:
    """At the root, where in a folder with a target the target's own would be."""
    target = make_bigram_layout(tmp_path / "target", "llama", EAGLE)
    tensors = read(target)
    head = tmp_path / "head"
    head.mkdir()
    own = {name: t for name, t in tensors.items() if name.startswith(("fc.", "layers."))}
    write(head, own | {"embed_tokens.weight": tensors["model.embed_tokens.weight"]})
    with_own_output(head, EAGLE, "lm_head.weight", table() @ ROTATED.T)
    model = load(target, head)
    assert model.head is not None and model.head.embedding is None
    assert acceptance_length(model) == 4.0


def test_another_checkpoints_lm_head_is_its_targets(tmp_path: Path) -> None:
    """A head taken from a whole checkpoint shares with MODEL what it shared there."""
    folder = make_checkpoint(tmp_path / "one", "mimo")
    other = make_checkpoint(tmp_path / "other", "mimo", seed=5)
    head = load(folder, other).head
    assert head is not None and head.output is None and head.embedding is None


def test_what_engines_leave_unread_is_left(tmp_path: Path) -> None:
    """vLLM's hy_v3_mtp takes the target's lm_head, whatever lies in the module."""
    folder = make_checkpoint(tmp_path, "hy_v3", family=HY)
    write(folder, read(folder) | {"model.layers.2.shared_head.weight": torch.ones(64, 32)})
    head = load_tiny(folder).head
    assert head is not None and head.output is None


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("lm_head.weight", (VOCAB + 8, HIDDEN), r"output matrix .*lm_head\.weight is \(40, 32\)"),
        ("lm_head.weight", (VOCAB, HIDDEN // 2), r"output matrix .* is \(32, 16\), not \(32, 32\)"),
        ("embed_tokens.weight", (VOCAB - 1, HIDDEN), r"embedding .*embed_tokens\.weight is \(31, "),
    ],
)
def test_a_matrix_of_another_shape_is_refused_by_name(
    name: str, shape: tuple[int, int], words: str, tmp_path: Path
) -> None:
    folder = make_bigram_layout(tmp_path)
    write(folder, read(folder) | {f"model.mtp_layers.0.{name}": torch.ones(shape)})
    with pytest.raises(MissingHeadError, match=words):
        load(folder)


def test_two_output_matrices_are_refused_by_name(tmp_path: Path) -> None:
    folder = make_bigram_layout(tmp_path, "glm4_moe", DEEPSEEK)
    names = [f"model.layers.2.shared_head.{name}.weight" for name in ("head", "output")]
    write(folder, read(folder) | {name: torch.ones(VOCAB, HIDDEN) for name in names})
    with pytest.raises(MissingHeadError, match=r"more than one output matrix: .*head.*output"):
        load(folder)


def test_values_are_compared_to_the_last_row_and_across_types(tmp_path: Path) -> None:
    one = torch.randn(50, 32).bfloat16()
    last = one.clone()
    last[-1, -1] += 1
    write(tmp_path, {"one": one, "wide": one.float(), "last": last, "short": one[:40]})
    file = tmp_path / "model.safetensors"
    equal = {
        name: equal_values((file, "one"), (file, name), torch.bfloat16)
        for name in ("one", "wide", "last", "short")
    }
    assert equal == {"one": True, "wide": True, "last": False, "short": False}


def test_rows_are_compared_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part is larger than is allowed, and a difference in any of them is seen."""
    monkeypatch.setattr("cgbench.models.checkpoint._COMPARED_BYTES", 3 * 32 * 4)
    one = torch.randn(50, 32)
    others = {str(row): one.clone() for row in range(0, 50, 7)}
    for row, other in others.items():
        other[int(row), 0] += 1
    write(tmp_path, {"one": one, "same": one.clone(), **others})
    file = tmp_path / "model.safetensors"
    assert equal_values((file, "one"), (file, "same"), torch.float32)
    assert not any(equal_values((file, "one"), (file, row), torch.float32) for row in others)


def test_the_floor_counts_the_heads_own_product(tmp_path: Path) -> None:
    form = HeadForm(own_output=True, own_embedding=True)
    folder = make_checkpoint(tmp_path, "mimo", form=form)
    model = load_tiny(folder)
    work = model_work(model.skeleton)
    (module,) = work.modules
    assert module.output.products == (Product(OWN_OUTPUT, 64 * 32, 1, 1),)
    assert module.forward.embedding_elements == 32
    shared = model_work(load_tiny(make_checkpoint(tmp_path / "shared", "mimo")).skeleton)
    assert shared.modules[0].output is shared.lm_head
    # Weights to load and to keep: the two matrices more.
    where = (model.skeleton.head_bytes(torch.float32), model.head_num_parameters)
    plain = load_tiny(tmp_path / "shared")
    less = (plain.skeleton.head_bytes(torch.float32), plain.head_num_parameters)
    assert [more - few for more, few in zip(where, less, strict=True)] == [2 * 64 * 32 * 4, 4096]


def test_an_embedding_of_its_own_shares_nothing_with_the_targets(tmp_path: Path) -> None:
    """Gemma's embedding has a scale beside its matrix; hooks of one are not the other's."""
    form = HeadForm(own_embedding=True)
    model = load_tiny(make_checkpoint(tmp_path, "gemma3_text", form=form))
    own, target = model.head and model.head.embedding, model.target.model.get_input_embeddings()
    assert own is not None and type(own) is type(target)
    ids = torch.arange(5)
    assert torch.equal(own(ids), own.weight[ids] * 32**0.5)
    assert not torch.equal(own.weight, target.weight)
    target.register_forward_hook(lambda *_: torch.zeros(1))
    assert own(ids).any()
