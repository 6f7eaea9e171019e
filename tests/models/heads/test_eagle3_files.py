"""What an EAGLE-3 head's folder must hold, and the one line that says what it lacks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cgbench.errors import BadInputError, MissingHeadError
from cgbench.floor.work import model_work
from cgbench.models.fingerprint import fingerprint
from cgbench.models.heads.eagle3_config import aux_layers
from cgbench.models.heads.head_copies import CopyUse
from cgbench.models.inspection import inspect_model
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.parallel.ranks import Ranks
from cgbench.request.parts import HeadWiring
from tests.support.eagle3 import (
    LAYOUTS,
    SAFEAILAB,
    SPECULATORS_3,
    VLLM,
    VOCAB,
    WHOLE,
    Layout,
    Tensors,
    make_head_folder,
    make_target,
    read_head,
    write_head,
)
from tests.support.tiny import load_tiny


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target") / "llama")


def loading(
    target: Path, head: Path | None, *, ranks: int = 1, modules: int | None = None, **wiring: Any
) -> Loading:
    where = (torch.device("cpu"), torch.float32)
    return Loading(
        str(target),
        None if head is None else str(head),
        True,
        *where,
        wiring=HeadWiring(**wiring),
        ranks=Ranks(0, ranks),
        mtp_modules=modules,
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layouts_tensors_are_loaded_whole(layout: Layout, target: Path, tmp_path: Path) -> None:
    folder = make_head_folder(tmp_path / "head", layout, target)
    model = load_tiny(target, head=folder)
    stored = read_head(folder)
    assert model.head is not None and model.head_label == "eagle3:head"
    assert model.head.aux_layers == model.target.aux_layers == layout.aux_layers
    prefixes = model.head.family.prefixes(0)
    matrices = {"embedding": f"{layout.prefix}embed_tokens", "output": "lm_head"}
    for name, tensor in model.head.state_dict().items():
        ours, _, rest = name.partition(".")
        theirs = f"{(prefixes | matrices)[ours]}.{rest}"
        assert torch.equal(tensor, stored.pop(theirs)), name
    left = {"d2t", "t2d"} if layout is not WHOLE else {"embed_tokens.weight"}
    assert set(stored) == left
    if layout is not WHOLE:
        ids = torch.arange(24) + stored["d2t"]
        assert model.head.target_ids is not None and torch.equal(model.head.target_ids, ids)


def test_an_unprefixed_layers_0_is_vllms_too(target: Path, tmp_path: Path) -> None:
    folder = make_head_folder(tmp_path / "head", replace(VLLM, prefix=""), target)
    assert load_tiny(target, head=folder).head is not None


def test_inspect_shows_layers_vocabulary_matrices_and_bytes(target: Path, tmp_path: Path) -> None:
    folder = make_head_folder(tmp_path / "head", SPECULATORS_3, target)
    found = inspect_model(loading(target, folder))
    assert found.is_usable and found.head is not None
    assert (found.head.family, found.head.aux_layers) == ("eagle3", (1, 3, 6))
    assert (found.head.draft_vocab_size, found.head.modules) == (24, 1)
    uses = {copy.what: copy.use for copy in found.head.copies}
    assert uses == {"embedding": CopyUse.OWN, "output matrix": CopyUse.OWN}
    weights = {n: t for n, t in read_head(folder).items() if n not in ("d2t", "t2d")}
    assert found.head.num_tensors == len(weights)
    assert found.head.weight_bytes == 4 * sum(t.numel() for t in weights.values())
    # Eight layers of the target with 2 heads of 8, and the head's with 1 of 24.
    assert found.kv_bytes_per_token == 4 * 2 * (8 * 2 * 8 + 24)


def test_equal_copies_are_not_held(target: Path, tmp_path: Path) -> None:
    folder = make_head_folder(tmp_path / "head", WHOLE, target)
    lm_head = load_file(target / "model.safetensors")["lm_head.weight"]
    write_head(folder, read_head(folder) | {"lm_head.weight": lm_head})
    model = load_tiny(target, head=folder)
    assert model.head is not None
    assert model.head.embedding is None and model.head.output is None
    found = inspect_model(loading(target, folder)).head
    assert found is not None and {copy.use for copy in found.copies} == {CopyUse.EQUAL}


def test_the_floor_reads_fc_at_draft_1_alone_and_the_reduced_matrix(
    target: Path, tmp_path: Path
) -> None:
    folder = make_head_folder(tmp_path / "head", SAFEAILAB, target)
    work = model_work(plan_loading(loading(target, folder)).skeleton)
    sizes = [
        {product.name: product.num_elements for product in work.module_of(step).forward.products}
        for step in (1, 2, 5)
    ]
    assert sizes[0].pop("proj") == 32 * 96
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[1]["self_attn.q_proj"] == 32 * 64 and sizes[1]["self_attn.k_proj"] == 16 * 64
    (output,) = work.module_of(1).output.products
    assert (output.name, output.num_elements) == ("output", 24 * 32)
    assert work.module_of(1).forward.embedding_elements == 32
    assert len(work.modules) == 1


def test_the_fingerprint_knows_the_map(target: Path, tmp_path: Path) -> None:
    folder = make_head_folder(tmp_path / "head", SAFEAILAB, target)
    model = load_tiny(target, head=folder)
    assert model.head is not None and model.head.target_ids is not None
    before = fingerprint(model.target, model.head)
    model.head.target_ids[3] += 1
    assert fingerprint(model.target, model.head) != before


def test_rotary_frequencies_stay_in_float32(target: Path, tmp_path: Path) -> None:
    folder = make_head_folder(tmp_path / "head", VLLM, target)
    head = load_tiny(target, head=folder, dtype=torch.bfloat16).head
    exact = load_tiny(target, head=folder).head
    assert head is not None and exact is not None
    assert head.proj.weight.dtype == torch.bfloat16
    assert torch.equal(head.rotary.inv_freq, exact.rotary.inv_freq)


Change = Callable[[dict[str, Any], Tensors], None]


def config(**fields: Any) -> Change:
    return lambda stated, _: stated.update(fields)


def layer(**fields: Any) -> Change:
    return lambda stated, _: stated["transformer_layer_config"].update(fields)


def tensor(name: str, make: Callable[[Tensors], torch.Tensor]) -> Change:
    return lambda _, tensors: tensors.update({name: make(tensors)})


def without(name: str) -> Change:
    return lambda stated, tensors: (tensors.pop(name, None), stated.pop(name, None)) and None


IDS = "eagle_aux_hidden_state_layer_ids"
FAULTS: list[tuple[Layout, Change, str]] = [
    (
        SAFEAILAB,
        tensor("d2t", lambda t: t["d2t"][:-1]),
        "d2t is I64 (23,), not whole numbers of shape (24,): one offset for each draft token that "
        "config.json states",
    ),
    (
        VLLM,
        tensor("d2t", lambda t: t["d2t"][:, None]),
        "d2t is I64 (24, 1), not whole numbers of shape (24,): one offset for each draft token "
        "that lm_head.weight has rows",
    ),
    (
        SAFEAILAB,
        tensor("d2t", lambda t: t["d2t"].float()),
        "d2t is F32 (24,), not whole numbers of shape (24,): one offset for each draft token that "
        "config.json states",
    ),
    (
        SAFEAILAB,
        tensor("d2t", lambda t: torch.arange(24) + 60),
        "d2t makes draft token 2 the target's 64, out of its vocabulary of 64: token i is the "
        "target's i + d2t[i]",
    ),
    (
        SAFEAILAB,
        tensor("d2t", lambda t: t["d2t"].index_fill(0, torch.tensor([5]), -6)),
        "d2t makes draft token 5 the target's -1, out of its vocabulary of 64: token i is the "
        "target's i + d2t[i]",
    ),
    (
        SAFEAILAB,
        tensor("d2t", lambda t: -torch.arange(24)),
        "d2t makes two draft tokens one token of the target's",
    ),
    (
        SAFEAILAB,
        without("d2t"),
        "the EAGLE-3 head lacks d2t, and its 24 draft tokens are not the target's 64",
    ),
    (SAFEAILAB, without("lm_head.weight"), "the EAGLE-3 head lacks lm_head.weight"),
    (
        SAFEAILAB,
        config(draft_vocab_size=0),
        "config.json: draft_vocab_size 0: must be a whole number above 0",
    ),
    (
        SAFEAILAB,
        tensor("lm_head.weight", lambda t: t["lm_head.weight"][:20]),
        "the EAGLE-3 head does not fit its target: lm_head.weight is (20, 32), not (24, 32)",
    ),
    (
        SAFEAILAB,
        tensor("fc.weight", lambda t: t["fc.weight"][:, :64]),
        "the EAGLE-3 head does not fit its target: fc.weight is (32, 64), not (32, 96)",
    ),
    (
        VLLM,
        tensor("model.fc.weight", lambda t: t["model.fc.weight"][:, :64]),
        "the EAGLE-3 head does not fit its target: model.fc.weight is (48, 64), not (48, 96)",
    ),
    (SAFEAILAB, without("fc.weight"), "the EAGLE-3 head lacks fc.weight"),
    (
        VLLM,
        without("model.embed_tokens.weight"),
        "the EAGLE-3 head lacks embed_tokens.weight: the target's embedding is 32 wide, not 48",
    ),
    (
        SAFEAILAB,
        without("midlayer.hidden_norm.weight"),
        "the EAGLE-3 head lacks midlayer.hidden_norm.weight or layers.0.hidden_norm.weight",
    ),
    (
        SPECULATORS_3,
        without("layers.0.self_attn.k_proj.weight"),
        "the EAGLE-3 head lacks layers.0.self_attn.k_proj.weight",
    ),
    (
        SPECULATORS_3,
        tensor("layers.0.self_attn.q_norm.weight", lambda _: torch.ones(24)),
        "the EAGLE-3 head has layers.0.self_attn.q_norm.weight, which Llama's layers do not have. "
        "It was made for another target",
    ),
    (
        VLLM,
        tensor("model.fc_norm.0.weight", lambda _: torch.ones(32)),
        "has model.fc_norm.0.weight, which is no part of an EAGLE-3 head that can be run here",
    ),
    (
        SAFEAILAB,
        tensor("fc.weight", lambda t: t["fc.weight"].to(torch.int8)),
        "the EAGLE-3 head is stored as I8 (fc.weight). Give --head with a bfloat16 or float16 head",
    ),
    (
        SPECULATORS_3,
        config(**{IDS: [1, 3]}),
        f"config.json: {IDS} 1, 3: must be three layers of the target's 8 in ascending order",
    ),
    (
        SPECULATORS_3,
        config(**{IDS: [6, 3, 1]}),
        f"config.json: {IDS} 6, 3, 1: must be three layers of the target's 8 in ascending order",
    ),
    (
        SPECULATORS_3,
        config(**{IDS: [2, 5, 9]}),
        f"config.json: {IDS} 2, 5, 9: must be three layers of the target's 8 in ascending order",
    ),
    (
        SPECULATORS_3,
        config(**{IDS: "2, 4, 5"}),
        f"config.json: {IDS} 2, 4, 5: must be a list of layer numbers",
    ),
    (
        VLLM,
        config(eagle_config={IDS: [1, 3, 8]}),
        f"config.json: eagle_config.{IDS} 1, 3, 8: must be three layers of the target's 8 in "
        "ascending order",
    ),
    (
        VLLM,
        config(**{IDS: [1, 3, 7]}),
        f"config.json: {IDS} 1, 3, 7 and eagle_config.{IDS} 1, 3, 7 name different layers. The "
        "former counts the layers that read a state, the latter those that write it",
    ),
    (VLLM, config(eagle_config=7), "config.json: eagle_config 7: must be an object"),
    (
        VLLM,
        config(eagle_config={"use_aux_hidden_state": False}),
        "config.json: eagle_config.use_aux_hidden_state false: such an EAGLE-3 head cannot be run "
        "here",
    ),
    (
        SAFEAILAB,
        config(norm_output=True),
        "config.json: norm_output true: such an EAGLE-3 head cannot be run here",
    ),
    (
        SAFEAILAB,
        config(model_type="qwen3"),
        "config.json: model_type qwen3: the layer of an EAGLE-3 head is run as Llama's alone",
    ),
    (
        SPECULATORS_3,
        layer(num_hidden_layers=2),
        "config.json: transformer_layer_config.num_hidden_layers 2: an EAGLE-3 head can be run "
        "with one layer alone",
    ),
    (
        SPECULATORS_3,
        layer(intermediate_size=None),
        "config.json: transformer_layer_config.intermediate_size: must be there",
    ),
    (
        SPECULATORS_3,
        without("norm_before_residual"),
        "config.json: norm_before_residual: must be there, true or false",
    ),
    (
        SAFEAILAB,
        config(num_key_value_heads=3),
        "config.json: num_key_value_heads 3: must divide num_attention_heads, 4",
    ),
    (
        SAFEAILAB,
        config(hidden_size="wide"),
        "config.json: hidden_size wide: must be a whole number from 1 to 16,777,216",
    ),
    (
        SAFEAILAB,
        config(target_hidden_size=64),
        "config.json: target_hidden_size 64: the target's hidden size is 32: the head is of "
        "another target",
    ),
    (
        SAFEAILAB,
        config(hidden_size=96),
        "config.json: hidden_size 96: an EAGLE-3 head as wide as three of its target's states "
        "cannot be run here",
    ),
    (
        SAFEAILAB,
        config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "config.json: rotary type 'dynamic' reads values on the host, and an EAGLE-3 head with it "
        "cannot be run here",
    ),
]


@pytest.mark.parametrize(
    ("layout", "change", "line"),
    FAULTS,
    ids=[f"{i}-{each[0].name}" for i, each in enumerate(FAULTS)],
)
def test_a_fault_is_one_clear_line(
    layout: Layout, change: Change, line: str, target: Path, tmp_path: Path
) -> None:
    folder = faulty(make_head_folder(tmp_path / "head", layout, target), change)
    with pytest.raises(MissingHeadError) as error:
        plan_loading(loading(target, folder))
    assert str(error.value) in (f"{folder}: {line}", f"{folder}/{line}")


def faulty(folder: Path, change: Change) -> Path:
    stated, tensors = json.loads((folder / "config.json").read_text()), read_head(folder)
    change(stated, tensors)
    (folder / "config.json").write_text(json.dumps(stated))
    write_head(folder, tensors)
    return folder


def test_inspect_shows_the_line_as_it_is(target: Path, tmp_path: Path) -> None:
    """One of the tensors, and one of the configuration."""
    for number in (0, -1):
        layout, change, line = FAULTS[number]
        folder = faulty(make_head_folder(tmp_path / str(number), layout, target), change)
        problem = inspect_model(loading(target, folder)).head_problem
        assert problem in (f"{folder}: {line}", f"{folder}/{line}")


def test_a_head_without_config_is_refused(target: Path, tmp_path: Path) -> None:
    folder = make_head_folder(tmp_path / "head", SAFEAILAB, target)
    (folder / "config.json").unlink()
    with pytest.raises(MissingHeadError, match=r"an EAGLE-3 head needs its config\.json"):
        plan_loading(loading(target, folder))


def test_a_target_with_too_few_layers_for_the_default(tmp_path: Path) -> None:
    with pytest.raises(MissingHeadError) as error:
        aux_layers("head: config.json", {}, 6)
    assert str(error.value) == (
        f"head: config.json: {IDS} missing: must be three layers of the target's 6 in ascending "
        "order, and the default 2, 3, 3 is not"
    )
    assert aux_layers("head", {}, 32) == (2, 16, 29)
    assert aux_layers("head", {IDS: [0, 3, 6]}, 6) == (0, 3, 6)


def test_a_head_in_the_targets_own_files_is_refused(target: Path, tmp_path: Path) -> None:
    folder = make_target(tmp_path / "target")
    apart = read_head(make_head_folder(tmp_path / "head", SAFEAILAB, target))
    write_head(folder, load_file(folder / "model.safetensors") | apart)
    with pytest.raises(
        MissingHeadError, match=r"holds an EAGLE-3 head .*and this folder as --head"
    ):
        plan_loading(loading(folder, None))


def test_flags_that_an_eagle_3_head_has_no_use_for(target: Path, tmp_path: Path) -> None:
    folder = make_head_folder(tmp_path / "head", SAFEAILAB, target)
    with pytest.raises(
        BadInputError,
        match=r"^--head-concat: an EAGLE-3 head has no concat to state, only --chain-norm and",
    ):
        plan_loading(loading(target, folder, concat="HE", hidden_in="pre"))
    with pytest.raises(MissingHeadError, match=r"\(d2t, .*\), and not one of family eagle$"):
        plan_loading(loading(target, folder, family="eagle"))
    with pytest.raises(BadInputError, match="--mtp-modules 2: the head has 1 module"):
        plan_loading(loading(target, folder, modules=2))
    assert plan_loading(loading(target, folder, family="eagle3")).head_label == "eagle3:head"
    chained = load_model(loading(target, folder, chain="post"))
    assert chained.head_label == "eagle3[chain=post]:head"


def test_a_folder_without_an_eagle_3_head_is_refused_if_one_is_stated(
    target: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingHeadError, match=r"no EAGLE-3 head tensors \(looked for midlayer\."):
        plan_loading(loading(target, target, family="eagle3"))


def test_the_tests_vocabulary_is_the_targets(target: Path) -> None:
    assert load_tiny(target, with_head=False).target.vocab_size == VOCAB
