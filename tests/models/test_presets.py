"""Presets: a public model's shape, and random weights that come from the seed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cgbench.errors import ModelError
from cgbench.models.checkpoint import config_from_dict
from cgbench.models.fingerprint import fingerprint
from cgbench.models.heads.families import MIMO
from cgbench.models.heads.head import DraftHead
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.presets import PRESETS, Preset, default_golden
from cgbench.models.support import auto_class_for
from cgbench.request.acceptance_lengths import GOLDEN
from tests.support.tiny import SHAPE

HIDDEN, FFN, LAYERS, VOCAB = 4096, 11008, 36, 151680
KV_SIZE = 8 * 128

ATTENTION = 2 * HIDDEN * HIDDEN + 2 * KV_SIZE * HIDDEN + HIDDEN + 2 * KV_SIZE
"""q and o, k and v, and the biases of q, k and v."""
BLOCK = ATTENTION + 3 * HIDDEN * FFN + 2 * HIDDEN
TARGET = 2 * VOCAB * HIDDEN + LAYERS * BLOCK + HIDDEN
"""Embedding and lm_head apart, the blocks, the final norm."""
HEAD = BLOCK + 2 * HIDDEN * HIDDEN + 3 * HIDDEN
"""A block, the projection, and the norms before and after."""


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_a_preset_takes_the_golden_length_of_its_family_and_says_that_it_borrows(
    preset: Preset,
) -> None:
    """No preset is a model of the table, so each of them borrows."""
    family = preset.name.partition("-")[0].rstrip(".0123456789")
    rows = {"qwen": "qwen3.5-397b-on", "deepseek": "deepseek-v4-on"}
    row = rows.get(family, "glm-5.2-on")
    assert str(default_golden(preset)) == f"golden:{row} (borrowed)"


def test_what_a_family_without_a_row_borrows_lies_between_the_others() -> None:
    low, middle, high = (
        GOLDEN[f"{name}-on"].lengths for name in ("deepseek-v4", "glm-5.2", "qwen3.5-397b")
    )
    assert all(a < b < c for a, b, c in zip(low, middle, high, strict=True))


def test_a_preset_with_a_row_of_its_own_borrows_nothing() -> None:
    own = replace(PRESETS["qwen3.5-35b-a3b"], name="qwen3.5-397b-a17b")
    assert str(default_golden(own)) == "golden:qwen3.5-397b-on"


@pytest.fixture(scope="module")
def mimo_7b() -> PreTrainedModel:
    config = config_from_dict(dict(PRESETS["mimo-7b"].config))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_mimo_7b_has_its_public_size(mimo_7b: PreTrainedModel) -> None:
    assert num_parameters(mimo_7b) == TARGET
    assert TARGET == pytest.approx(7.63e9, rel=1e-3)


def test_mimo_7b_head_has_its_public_size(mimo_7b: PreTrainedModel) -> None:
    with torch.device("meta"):
        head = DraftHead(MIMO, mimo_7b)
    assert num_parameters(head) == HEAD
    assert TARGET + HEAD == pytest.approx(7.83e9, rel=1e-3)


def test_mimo_7b_rotates_with_its_public_base(mimo_7b: PreTrainedModel) -> None:
    rotary = type(mimo_7b.base_model.rotary_emb)(mimo_7b.config)
    expected = 640000.0 ** -(torch.arange(0, 128, 2) / 128)
    torch.testing.assert_close(rotary.inv_freq, expected)


@pytest.mark.parametrize(
    ("name", "public"), [("qwen3.5-0.8b", 0.752e9), ("qwen3.5-35b-a3b", 34.66e9)]
)
def test_hybrids_have_their_public_size(name: str, public: float) -> None:
    """Three layers of four are gated delta nets, and the last is full attention."""
    where = (torch.device("cpu"), torch.bfloat16)
    plan = plan_loading(Loading(f"preset:{name}", None, True, *where))
    assert plan.skeleton.weight_bytes(torch.bfloat16) / 2 == pytest.approx(public, rel=2e-3)
    num_layers = plan.skeleton.target.num_layers
    linear = set(range(num_layers)) - set(range(3, num_layers, 4))
    assert set(plan.skeleton.kv.state_shapes) == linear
    # The head's block, full attention too, is one layer more.
    assert set(plan.skeleton.kv.kv_shapes) == {*range(3, num_layers, 4), num_layers}


def whole(name: str, num_layers: int, **fields: Any) -> PreTrainedModel:
    """The public model that a preset has the first layers of."""
    config = {**PRESETS[name].config, "num_hidden_layers": num_layers, **fields}
    with torch.device("meta"):
        return auto_class_for(config_from_dict(config)).from_config(config_from_dict(config))


def test_mimo_v2_flash_has_its_public_size() -> None:
    assert num_parameters(whole("mimo-v2-flash-9l", 48)) == pytest.approx(309e9, rel=2e-3)


def test_step_3_5_flash_has_its_public_size() -> None:
    types = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(48)]
    of_layers = {
        "layer_types": types,
        "rope_theta": [5e6 if each == "full_attention" else 1e4 for each in types],
        "partial_rotary_factors": [0.5 if each == "full_attention" else 1.0 for each in types],
        "moe_layers_enum": ",".join(map(str, range(3, 45))),
    }
    model = whole("step-3.5-flash-14l", 45, **of_layers)
    assert num_parameters(model) == pytest.approx(196.8e9, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "num_layers", "head"),
    [("mimo-v2-flash-9l", 9, 0.99e9), ("step-3.5-flash-14l", 14, 2.43e9)],
)
def test_a_preset_of_several_modules_fits_one_gpu_with_all_of_them(
    name: str, num_layers: int, head: float
) -> None:
    """Weights take less than 110 of 141 GB. Every module attends as the sliding layers do."""
    where = (torch.device("cpu"), torch.bfloat16)
    skeleton = plan_loading(Loading(f"preset:{name}", None, True, *where)).skeleton
    assert skeleton.weight_bytes(torch.bfloat16) + skeleton.head_bytes(torch.bfloat16) < 111e9
    assert skeleton.head_bytes(torch.bfloat16) / 2 == pytest.approx(head, rel=5e-3)
    layers = skeleton.kv.kv_shapes
    assert set(layers) == set(range(num_layers + 3))
    sliding = {n: window for n, window in skeleton.kv.windows.items() if window is not None}
    assert set(range(num_layers, num_layers + 3)) < set(sliding)
    assert {layers[n] for n in sliding} == {layers[num_layers]}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    config = {**SHAPE, "model_type": "mimo", "eos_token_id": [3, 5]}
    monkeypatch.setitem(PRESETS, "small", Preset("small", "a test", config))
    return "preset:small"


def load(ref: str, **changes: Any) -> LoadedModel:
    request = {"head_ref": None, "with_head": True, "dtype": torch.bfloat16, "seed": 0, **changes}
    return load_model(Loading(ref=ref, device=torch.device("cpu"), **request))


def test_a_preset_is_labelled_random(small: str) -> None:
    model = load(small)
    assert (model.label, model.head_label) == (
        "preset:small (random weights)",
        "mimo (random weights)",
    )
    assert model.random_weights and model.tokenizer is None
    assert model.eos_token_ids == (3, 5)


def test_a_preset_is_made_in_the_dtype_asked_for(small: str) -> None:
    model = load(small)
    assert model.head is not None
    tensors = [*model.target.model.parameters(), *model.head.parameters()]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_weights_come_from_the_seed(small: str) -> None:
    prints = [
        fingerprint(model.target, model.head)
        for model in (load(small), load(small), load(small, seed=1))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_random_weights_spread_as_transformers_makes_them(small: str) -> None:
    """Matrices with one deviation, norms one, biases zero: activations neither vanish nor blow."""
    model = load(small)
    assert model.head is not None
    for module in (model.target.model, model.head):
        for name, tensor in module.named_parameters():
            if tensor.dim() > 1:
                assert tensor.float().std().item() == pytest.approx(0.02, rel=0.2), name
            else:
                assert set(tensor.tolist()) == {0.0 if name.endswith("bias") else 1.0}, name


def test_k_0_alone_makes_no_head(small: str) -> None:
    model = load(small, with_head=False)
    assert model.head is None and model.head_label == "none"


def test_a_preset_takes_no_other_head(small: str) -> None:
    with pytest.raises(ModelError, match="--head"):
        load(small, head_ref="anything")
