"""What a DFlash drafter's folder must hold, and the one line that says what it lacks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.engine.backends import NamedBackend, sdpa_decode
from cgbench.engine.block_drafts import check_drafter
from cgbench.errors import BadInputError, MissingHeadError
from cgbench.floor.least_time import Batch, Floor
from cgbench.floor.rates import DeviceLimits
from cgbench.floor.work import model_work
from cgbench.models.inspection import inspect_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.request.parts import HeadWiring
from tests.support.dflash import FULL, MASK, MIXED, WINDOWS, Tensors, make_drafter, make_target
from tests.support.eagle3 import read_head, write_head
from tests.support.tiny import load_tiny


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target") / "llama")


def loading(target: Path, head: Path | None, **wiring: Any) -> Loading:
    where = (torch.device("cpu"), torch.float32)
    head_ref = None if head is None else str(head)
    return Loading(str(target), head_ref, True, *where, wiring=HeadWiring(**wiring))


@pytest.mark.parametrize("form", [FULL, MIXED, WINDOWS], ids=lambda form: form.name)
def test_the_layouts_tensors_are_loaded_whole(form: Any, target: Path, tmp_path: Path) -> None:
    folder = make_drafter(tmp_path / "drafter", form)
    model = load_tiny(target, head=folder)
    assert model.head is not None and model.head_label == "dflash:drafter (parallel)"
    assert model.head.aux_layers == tuple(number + 1 for number in form.target_layer_ids)
    assert [*model.head.layer_numbers] == [4 + n for n in range(form.config["num_hidden_layers"])]
    stored = read_head(folder)
    names = {"proj": "fc", "block": "layers", "out_norm": "norm", "hidden_norm": "hidden_norm"}
    for name, tensor in model.head.state_dict().items():
        ours, _, rest = name.partition(".")
        assert torch.equal(tensor, stored.pop(f"{names[ours]}.{rest}")), name
    assert not stored


def test_inspect_calls_it_parallel(target: Path, tmp_path: Path) -> None:
    folder = make_drafter(tmp_path / "drafter", MIXED)
    found = inspect_model(loading(target, folder))
    assert found.is_usable and found.head is not None
    assert (found.head.family, found.head.label) == ("dflash", "dflash:drafter (parallel)")
    assert (found.head.aux_layers, found.head.block_size, found.head.mask_token) == ((1, 3), 8, 63)
    assert found.head.weight_bytes == 4 * sum(t.numel() for t in read_head(folder).values())
    # Four layers of the target with 2 heads of 8, and three of the drafter with 1 of 24.
    assert found.kv_bytes_per_token == 4 * 2 * (4 * 2 * 8 + 3 * 24)


def test_the_floor_reads_each_weight_once_for_all_drafts(target: Path, tmp_path: Path) -> None:
    folder = make_drafter(tmp_path / "drafter", FULL)
    work = model_work(plan_loading(loading(target, folder)).skeleton)
    (module,) = work.modules
    rows = {each.name: (each.num_elements, each.context_rows) for each in module.forward.products}
    assert work.is_parallel and rows == {
        "proj": (32 * 96, 0),
        "self_attn.q_proj": (64 * 32, 0),
        "self_attn.k_proj": (32 * 32, 1),
        "self_attn.v_proj": (32 * 32, 1),
        "self_attn.o_proj": (64 * 32, 0),
        "mlp.gate_proj": (48 * 32, 0),
        "mlp.up_proj": (48 * 32, 0),
        "mlp.down_proj": (48 * 32, 0),
    }
    # Operations are so slow that they bind everything.
    floor = Floor(work, DeviceLimits(read_bytes_per_s=1e30, flops_per_s=1.0), 4)
    lines = floor.account(Batch(batch_size=2, spec_tokens=3, context_len=20.0))
    drafts = {line.what: line for line in lines if str(line.stage) == "draft_1"}
    assert {str(line.stage) for line in lines} == {"verify", "draft_1"}
    # Two requests, k + 1 rows: one layer's keys are made of the context and of the block.
    assert drafts["self_attn.k_proj"].flops == 2 * 2 * (2 * 4) * 2 * 32 * 32
    assert drafts["self_attn.k_proj"].num_bytes == 2 * 32 * 32 * 4
    assert drafts["self_attn.q_proj"].flops == 2 * 2 * (2 * 4) * 64 * 32
    # Three drafts of each request.
    assert drafts["lm_head"].flops == 2 * (2 * 3) * 64 * 32
    # Its keys are the context, the newest token's row among them at least, and the block.
    assert drafts["attention"].num_bytes == 2 * 2 * (20 + 1 + 4) * 2 * 2 * 16 * 4


Change = Callable[[dict[str, Any], Tensors], None]


def config(**fields: Any) -> Change:
    return lambda stated, _: stated.update(fields)


def nested(**fields: Any) -> Change:
    return lambda stated, _: stated["dflash_config"].update(fields)


def tensor(name: str, make: Callable[[Tensors], torch.Tensor]) -> Change:
    return lambda _, tensors: tensors.update({name: make(tensors)})


def without(name: str) -> Change:
    return lambda stated, tensors: (tensors.pop(name, None), stated.pop(name, None)) and None


LAYERS = "must list layers from 0 to 2 in ascending order, those of the target whose output"
FAULTS: list[tuple[Change, str]] = [
    (
        nested(target_layer_ids=[0, 3]),
        f"config.json: target_layer_ids [0, 3]: {LAYERS} the drafter reads",
    ),
    (
        nested(target_layer_ids=[2, 1]),
        f"config.json: target_layer_ids [2, 1]: {LAYERS} the drafter reads",
    ),
    (
        without("dflash_config"),
        f"config.json: target_layer_ids null: {LAYERS} the drafter reads",
    ),
    (config(dflash_config=[]), "config.json: dflash_config []: must be an object"),
    (
        nested(mask_token_id=64),
        "config.json: mask_token_id 64: must be a whole number from 0 to 63",
    ),
    (config(block_size=1), "config.json: block_size 1: must be a whole number from 2 to 1024"),
    (config(is_causal="no"), "config.json: is_causal no: must be true or false"),
    (
        config(hidden_size=64),
        "config.json: hidden_size 64: a DFlash drafter has its target's, which is 32: it is of "
        "another target",
    ),
    (
        config(num_target_layers=36),
        "config.json: num_target_layers 36: the target has 4 layers: the drafter is of another "
        "target",
    ),
    (
        config(model_type="llama"),
        "config.json: model_type llama: the layers of a DFlash drafter are run as Qwen3's alone",
    ),
    (without("intermediate_size"), "config.json: intermediate_size: must be there"),
    (
        config(architectures=["DFlash2DraftModel"]),
        'config.json: architectures ["DFlash2DraftModel"]: of parallel drafters DFlashDraftModel '
        "alone can be run here",
    ),
    (
        nested(projector_type="dspark"),
        "config.json: projector_type dspark: such a DFlash drafter cannot be run here",
    ),
    (
        config(quantization_config={"quant_method": "fp8"}),
        "config.json: quantization_config: a quantised DFlash drafter cannot be run here. Give "
        "--head with a bfloat16 or float16 one",
    ),
    (without("fc.weight"), "the DFlash drafter lacks fc.weight"),
    (
        without("layers.1.self_attn.k_norm.weight"),
        "the DFlash drafter lacks layers.1.self_attn.k_norm.weight",
    ),
    (
        tensor("fc.weight", lambda t: t["fc.weight"][:, :64]),
        "the DFlash drafter does not fit its target: fc.weight is (32, 64), not (32, 96)",
    ),
    (
        tensor("layers.2.mlp.up_proj.weight", lambda t: t["layers.1.mlp.up_proj.weight"]),
        "the DFlash drafter has layers.2.mlp.up_proj.weight, which Qwen3's layers do not have. It "
        "was made for another target",
    ),
    (
        tensor("markov_head.weight", lambda _: torch.ones(4)),
        "has markov_head.weight, which is no part of a DFlash drafter that can be run here",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), FAULTS, ids=[message[-40:] for _, message in FAULTS]
)
def test_a_fault_is_one_line(change: Change, message: str, target: Path, tmp_path: Path) -> None:
    folder = make_drafter(tmp_path / "drafter", FULL)
    file = folder / "config.json"
    stated, tensors = json.loads(file.read_text()), read_head(folder)
    change(stated, tensors)
    file.write_text(json.dumps(stated))
    write_head(folder, tensors)
    with pytest.raises(MissingHeadError, match=re.escape(message) + "$") as error:
        plan_loading(loading(target, folder))
    assert str(error.value).startswith(str(folder))


def test_it_is_refused_as_model_and_as_another_family(target: Path, tmp_path: Path) -> None:
    folder = make_drafter(tmp_path / "drafter", FULL)
    with pytest.raises(MissingHeadError, match=r"holds a DFlash drafter \(fc.weight, hidden_norm"):
        plan_loading(loading(target, folder, family="eagle3"))
    with pytest.raises(MissingHeadError, match="no DFlash drafter's tensors"):
        plan_loading(loading(target, None, family="dflash"))
    with pytest.raises(BadInputError, match="--chain-norm: a DFlash drafter has no chain to"):
        plan_loading(loading(target, folder, chain="pre"))


def test_what_a_block_cannot_do_is_refused(target: Path, tmp_path: Path) -> None:
    head = load_tiny(target, head=make_drafter(tmp_path / "drafter", FULL)).head
    sdpa = NamedBackend("sdpa", sdpa_decode)
    check_drafter(head, 7, sdpa)
    with pytest.raises(BadInputError, match="--spec-tokens 8: the DFlash drafter was trained on"):
        check_drafter(head, 8, sdpa)
    with pytest.raises(BadInputError, match=r"--attention my\.module:attend: the positions of a"):
        check_drafter(head, 3, NamedBackend("my.module:attend", sdpa_decode))


def test_an_eagle_1_head_is_no_drafter(target: Path, tmp_path: Path) -> None:
    """Its ``fc`` and layers have the same names, and it has no ``hidden_norm``."""
    folder = make_drafter(tmp_path / "drafter", FULL)
    (folder / "config.json").unlink()
    tensors = read_head(folder)
    write_head(folder, {n: t for n, t in tensors.items() if n != "hidden_norm.weight"})
    with pytest.raises(MissingHeadError, match="projection of eagle"):
        plan_loading(loading(target, folder))
    write_head(folder, tensors)
    with pytest.raises(MissingHeadError, match=r"a DFlash drafter needs its config\.json"):
        plan_loading(loading(target, folder))


def test_the_mask_is_a_token_of_the_target(target: Path, tmp_path: Path) -> None:
    head = load_tiny(target, head=make_drafter(tmp_path / "drafter", FULL)).head
    assert head is not None and head.mask_token.tolist() == [MASK]
