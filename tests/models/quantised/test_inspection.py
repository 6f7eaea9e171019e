"""What ``inspect`` says of FP8 checkpoints, what they weigh, and what cannot take them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.cli.inspect import _lines
from cgbench.engines.peer_rounds import PeerError
from cgbench.engines.transformers_decode import load_peer
from cgbench.floor.work import model_work
from cgbench.kernels.fp8.block_scales import FP8
from cgbench.models.heads.families import DEEPSEEK
from cgbench.models.inspection import Inspection, inspect_model
from cgbench.models.loading_plan import Loading, plan_loading
from tests.support.fp8 import compressed, make_fp8_checkpoint
from tests.support.tiny import edit_config, load_tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fp8_checkpoint(tmp_path_factory.mktemp("fp8"), "deepseek_v3", DEEPSEEK)[0]


def loading(folder: Path) -> Loading:
    return Loading(str(folder), None, True, CPU, torch.bfloat16)


def parts_of(found: Inspection) -> Mapping[tuple[str, str], int]:
    return {(each.part, each.dtype): each.num_bytes for each in found.precision}


def test_inspect_lists_precision_by_part(folder: Path) -> None:
    found = inspect_model(loading(folder))
    assert found.is_usable
    parts = parts_of(found)
    # Eight experts of 3 x 16 x 32, in one layer; a scale for each block of 16 x 16.
    assert parts["experts", "float8_e4m3fn"] == 8 * 3 * (16 * 32 + 2 * 4)
    assert parts["head experts", "float8_e4m3fn"] == parts["experts", "float8_e4m3fn"]
    assert parts["lm_head", "bfloat16"] == parts["embedding", "bfloat16"] == 64 * 32 * 2
    assert found.head is not None
    assert sum(parts.values()) == found.weight_bytes + found.head.weight_bytes
    text = "\n".join(f"{name} {value}" for name, value in _lines(found))
    assert "e4m3 with scales of blocks of 16 x 16" in text and "run as w8a16" in text
    assert "precision head experts: float8_e4m3fn" in text


def test_bytes_are_those_that_are_held(folder: Path) -> None:
    model = load_tiny(folder, dtype=torch.bfloat16)
    skeleton = model.skeleton
    for module, expected in (
        (model.target.model, skeleton.weight_bytes(torch.bfloat16)),
        (model.head, skeleton.head_bytes(torch.bfloat16)),
    ):
        assert module is not None
        held = {id(t): t for t in module.state_dict(keep_vars=True).values()}
        assert sum(t.nbytes for t in held.values()) == expected


def test_the_floor_reads_experts_as_they_are_stored(folder: Path) -> None:
    work = model_work(plan_loading(loading(folder)).skeleton)
    for forward in (work.target, work.modules[0].forward):
        (gate_up,) = (each for each in forward.products if each.name == "mlp.experts.gate_up_proj")
        assert gate_up.bytes_read(2) == 2 * (16 * 32 + 2 * 4)
    assert work.lm_head.products[0].bytes_read(2) == 64 * 32 * 2


def test_no_plain_copy_of_an_fp8_weight_stays(folder: Path) -> None:
    model = load_tiny(folder, dtype=torch.bfloat16)
    module = model.target.model
    tensors = [*module.parameters(), *module.buffers()]
    scaled = {tuple(each.shape) for each in tensors if each.dtype == FP8}
    plain = {tuple(each.shape) for each in tensors if each.dtype == torch.bfloat16}
    assert len(scaled) > 5 and not scaled & plain


def test_peers_refuse_them(folder: Path) -> None:
    with pytest.raises(PeerError, match="FP8 weights"):
        load_peer(plan_loading(loading(folder)))


@pytest.mark.parametrize("field", ["config_groups", "format"])
def test_a_damaged_declaration_is_one_line(folder: Path, tmp_path: Path, field: str) -> None:
    other, _ = make_fp8_checkpoint(tmp_path, "deepseek_v3", DEEPSEEK)
    stated: dict[str, Any] = compressed("channel") | {field: None}
    edit_config(other, quantization_config=stated)
    with pytest.raises(Exception, match="compressed-tensors") as error:
        plan_loading(loading(other))
    assert "\n" not in str(error.value)
