"""What transformers keeps in float32 stays so here, is drawn so, and counts so."""

from pathlib import Path

import pytest
import torch

from cgbench.floor.work import model_work
from cgbench.models.kept_types import kept_in_float32
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.precision import precision_by_part
from tests.support.presets import shrink_presets
from tests.support.tiny import make_checkpoint

KIND = "ernie4_5_moe"
"""Its router is kept by every transformers that is supported."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("kept") / "m", KIND)


def loading(ref: str, **changes: object) -> Loading:
    return Loading(ref, None, True, torch.device("cpu"), torch.bfloat16, **changes)  # type: ignore[arg-type]


def routers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each for name, each in state.items() if name.endswith("gate.weight")}


def test_a_checkpoints_router_counts_as_it_is_held(folder: Path) -> None:
    model = load_model(loading(str(folder)))
    held = routers(model.target.model.state_dict())
    assert held and {each.dtype for each in held.values()} == {torch.float32}
    parts = {
        each.dtype: each.num_bytes
        for each in precision_by_part(model.skeleton, torch.bfloat16)
        if each.part == "norms, routers and the rest"
    }
    assert parts["float32"] >= sum(each.nbytes for each in held.values())
    products = {each.weight: each for each in model_work(model.skeleton).target.products}
    for name, weight in held.items():
        product = products[name.removeprefix("model.").removesuffix(".weight")]
        assert product.bytes_read(itemsize=2) == weight.nbytes


def test_a_presets_router_is_drawn_as_exact_as_a_checkpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrink_presets(monkeypatch)
    plan = plan_loading(loading("preset:ernie-4.5-21b-a3b"))
    model = load_model(plan).target.model
    drawn = routers(model.state_dict())
    assert drawn and {each.dtype for each in drawn.values()} == {torch.float32}
    assert all(each.isfinite().all() and each.std() > 0 for each in drawn.values())
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_nothing_is_kept_in_a_model_of_float32(folder: Path) -> None:
    model = plan_loading(loading(str(folder))).skeleton.target.model
    keeps = kept_in_float32(model, torch.float32)
    assert not any(keeps(name) for name in model.state_dict())
