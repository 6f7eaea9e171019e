"""A head cut to a draft vocabulary: its matrices, its bytes, its floor, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.engine.runner import EagerRunner
from cgbench.errors import BadInputError
from cgbench.floor.work import model_work
from cgbench.kernels.fp8.block_scales import FP8, dequantised
from cgbench.models.fingerprint import fingerprint
from cgbench.models.heads.families import MIMO, MIMO_V2
from cgbench.models.heads.head import HeadForm
from cgbench.models.inspection import inspect_model
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.quantised.scaled_modules import ScaledLinear
from cgbench.parallel.ranks import Ranks
from cgbench.request.choices import QuantMode
from tests.support import eagle3
from tests.support.fp8 import is_converted, make_fp8_checkpoint
from tests.support.presets import shrink_presets
from tests.support.tiny import (
    decode_prompts,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)

IDS = [60, 2, 41, 7, 30, 63]
KEPT = sorted(IDS)
ROW = 32 * 4
"""The bytes of one row of an output matrix in float32."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ranks") / "ranks.json"
    file.write_text(json.dumps(IDS))
    return file


@pytest.fixture(scope="module")
def mimo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("mimo") / "mimo", "mimo")


def loading(ref: object, **how: Any) -> Loading:
    return Loading(str(ref), None, True, torch.device("cpu"), torch.float32, **how)


def cut_bytes(folder: Path, ranks: Path) -> int:
    """How many bytes a cut adds to the head's."""
    cut, whole = (
        plan_loading(loading(folder, **how)).skeleton.head_bytes(torch.float32)
        for how in ({"draft_vocab_from": str(ranks)}, {})
    )
    return cut - whole


def test_rows_are_gathered_once_and_count(mimo: Path, ranks: Path, tmp_path: Path) -> None:
    """Modules without a matrix of their own share the rows. Those with one keep fewer."""
    modules = {"family": MIMO_V2, "num_modules": 2}
    shared = make_checkpoint(tmp_path / "shared", "mimo_v2_flash", **modules)
    form = HeadForm(own_output=True)
    own = make_checkpoint(tmp_path / "own", "mimo_v2_flash", form=form, **modules)
    assert cut_bytes(mimo, ranks) == cut_bytes(shared, ranks) == len(IDS) * ROW
    assert cut_bytes(own, ranks) == 2 * (len(IDS) - 64) * ROW
    head = load_tiny(shared, draft_vocab_from=ranks).head
    assert head is not None and len({id(each.output) for each in head.mtp_modules}) == 1
    assert [each.has_target_rows for each in head.mtp_modules] == [True, True]


def test_the_floor_counts_the_rows_of_every_draft(mimo: Path, ranks: Path) -> None:
    model = load_tiny(mimo, draft_vocab_from=ranks)
    work = model_work(model.skeleton)
    (module,) = work.modules
    assert [(each.name, each.num_elements) for each in module.output.products] == [
        ("output", len(IDS) * 32)
    ]
    assert [each.num_elements for each in work.lm_head.products] == [64 * 32]


def test_the_label_the_bytes_and_the_tensors_that_inspect_names(mimo: Path, ranks: Path) -> None:
    found = inspect_model(loading(mimo, draft_vocab=4, draft_vocab_from=str(ranks)))
    assert found.head is not None and found.is_usable
    assert found.head.label == "mimo (4 draft tokens of ranks.json)"
    assert (found.head.draft_vocab_size, found.head.draft_vocab_source) == (4, "of ranks.json")
    assert found.head.output_bytes == 4 * ROW
    whole = inspect_model(loading(mimo)).head
    assert whole is not None and found.head.num_tensors == whole.num_tensors
    assert (whole.draft_vocab_size, whole.draft_vocab_source, whole.output_bytes) == (None, None, 0)


def test_the_fingerprint_is_of_the_tokens_too(mimo: Path, ranks: Path, tmp_path: Path) -> None:
    other = tmp_path / "ranks.json"
    other.write_text(json.dumps([*IDS[:-1], 5]))
    models = [load_tiny(mimo), *(load_tiny(mimo, draft_vocab_from=file) for file in (ranks, other))]
    assert len({fingerprint(each.target, each.head) for each in models}) == 3


def test_a_preset_takes_its_first_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_presets(monkeypatch)
    for name in ("mimo-7b", "step-3.5-flash-14l"):
        model = load_model(loading(f"preset:{name}", draft_vocab=9))
        assert model.head is not None and model.head.target_ids is not None
        assert model.head.target_ids.tolist() == [*range(9)]
        assert "9 draft tokens by id" in model.head_label and "random" in model.head_label
        for module in model.head.mtp_modules:
            assert module.output is not None and len(module.output.weight) == 9


def test_without_a_head_there_is_nothing_to_cut(mimo: Path) -> None:
    plan = plan_loading(replace(loading(mimo, draft_vocab=9), with_head=False))
    assert plan.draft_tokens is None


# FP8: the rows of one block of scales go apart.


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose output matrix is FP8 too, by blocks of 16 rows."""
    folder = tmp_path_factory.mktemp("scaled")

    def converts(name: str, tensor: torch.Tensor) -> bool:
        return is_converted(name, tensor) or name == "lm_head.weight"

    return make_fp8_checkpoint(folder, "mimo", MIMO, converts=converts)[0]


def values(layer: ScaledLinear) -> torch.Tensor:
    scales = layer.weight_scale, layer.weight_row_blocks
    return dequantised(layer.weight, *scales, torch.float32)


@torch.inference_mode()
def test_fp8_rows_keep_their_scales(scaled: Path, ranks: Path) -> None:
    model = load_tiny(scaled, draft_vocab_from=ranks)
    assert model.head is not None
    whole, cut = model.target.lm_head, model.head.output
    assert isinstance(whole, ScaledLinear) and isinstance(cut, ScaledLinear)
    assert cut.weight.dtype == FP8 and whole.weight_scale.shape == (4, 2)
    assert torch.equal(values(cut), values(whole)[KEPT])
    # A row is 32 bytes and the scales of two blocks of columns.
    bytes_of = model.skeleton.head_bytes(torch.float32)
    plain = plan_loading(loading(scaled)).skeleton.head_bytes(torch.float32)
    assert bytes_of - plain == len(IDS) * (32 + 2 * 4)
    (product,) = model_work(model.skeleton).modules[0].output.products
    assert product.bytes_read(4) == len(IDS) * (32 + 2 * 4)


@torch.inference_mode()
@pytest.mark.parametrize("quant", [QuantMode.W8A16, QuantMode.W8A8])
def test_fp8_drafts_are_the_best_of_the_tokens(scaled: Path, ranks: Path, quant: QuantMode) -> None:
    """Both modes: the cut matrix multiplies as the whole one does."""
    model = load_tiny(scaled, draft_vocab_from=ranks, quant=quant)
    assert model.head is not None
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    cut, whole = model.target.logits(hidden, model.head.output), model.target.logits(hidden)
    assert torch.allclose(cut, whole[:, KEPT], atol=1e-5)
    assert tokens_of(model) == tokens_of(load_tiny(scaled, quant=quant))


def tokens_of(model: LoadedModel) -> list[list[int]]:
    spec = make_speculator(model, max_batch_size=3, room=64)
    runner = EagerRunner(spec, make_state(spec, 3, 3))
    return decode_prompts(spec, runner, random_prompts(3), 8).token_ids


# What is refused by name.


def test_a_head_with_a_vocabulary_of_its_own(ranks: Path, tmp_path: Path) -> None:
    target = eagle3.make_target(tmp_path / "target")
    head = eagle3.make_head_folder(tmp_path / "head", eagle3.SAFEAILAB, target)
    with pytest.raises(
        BadInputError,
        match=r"^--draft-vocab: the EAGLE-3 head drafts 24 tokens of its own, by d2t\. Drop the",
    ):
        load_tiny(target, head=head, draft_vocab_from=ranks)


def test_ranks_that_do_not_divide_the_rows(mimo: Path, ranks: Path) -> None:
    how = {"draft_vocab_from": str(ranks), "ranks": Ranks(0, 2)}
    with pytest.raises(
        BadInputError,
        match=r"^--draft-vocab 5: --tp 2 divides the output matrix, so it must be a multiple of 2$",
    ):
        plan_loading(loading(mimo, draft_vocab=5, **how))
    assert plan_loading(loading(mimo, draft_vocab=4, **how)).draft_tokens is not None


def test_a_file_is_wanted_for_weights_that_are_not_random(mimo: Path) -> None:
    with pytest.raises(BadInputError, match="Give --draft-vocab-from FILE"):
        plan_loading(loading(mimo, draft_vocab=5))
