"""W8A8: the tokens of each public layout are those of transformers on the dequantised weights, with
every layer's input rounded to FP8 by code of the tests' own."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cgbench.checks.reference import Plain
from cgbench.models.heads.families import MIMO
from cgbench.models.loader import LoadedModel
from cgbench.models.quantised.scaled_modules import ScaledLinear
from cgbench.request.choices import QuantMode
from tests.models.quantised.test_tokens import COUNT, LAYOUTS, tokens_of
from tests.support.fp8 import BLOCK, make_fp8_checkpoint
from tests.support.quantised_forward import greedy, quantising_model, rounded
from tests.support.tiny import load_tiny, random_prompts

PROMPTS = random_prompts(3)

TIE = 0.03
"""Of a row's logits, from the least to the largest. A last bit decides now and then which FP8
number a value becomes, and so which of two such candidates is ahead."""


# One of each sort of module, and of each form of scales.
QUANTISED = (
    "mimo",
    "qwen3_moe",
    "deepseek_v3-eh_proj",
    "qwen3_5_moe",
    "qwen3-channels",
    "qwen3_moe-tensors",
)


@pytest.mark.parametrize("layout", QUANTISED)
def test_tokens_equal_those_of_rounded_inputs(layout: str, tmp_path: Path) -> None:
    kind, family, keywords = LAYOUTS[layout]
    folder, plain = make_fp8_checkpoint(tmp_path, kind, family, seed=1, **keywords)
    model = load_tiny(folder, quant=QuantMode.W8A8)
    assert model.quant == "w8a8"
    columns = None if layout.endswith(("channels", "tensors")) else BLOCK
    config = copy.deepcopy(model.target.model.config)
    theirs = quantising_model(plain, model.skeleton.scaled, columns, config=config)
    check_logits(model, theirs)
    expected = [greedy(theirs, prompt, COUNT) for prompt in PROMPTS]
    check_tokens(theirs, expected, tokens_of(model, 3))


@torch.inference_mode()
def check_logits(model: LoadedModel, theirs: PreTrainedModel) -> None:
    """Most rows have no value that a last bit sends elsewhere. Theirs are the same numbers."""
    rows = [
        (model.target.logits(Plain(model.target, []).states(prompt)), logits_of(theirs, prompt))
        for prompt in PROMPTS
    ]
    errors = torch.cat([(ours - its).norm(dim=-1) / its.norm(dim=-1) for ours, its in rows])
    assert errors.median() < 1e-5


def check_tokens(
    theirs: PreTrainedModel, expected: Sequence[list[int]], got: Sequence[list[int]]
) -> None:
    parted = 0
    for prompt, its, ours in zip(PROMPTS, expected, got, strict=True):
        if ours == its:
            continue
        parted += 1
        at = next(i for i in range(COUNT) if ours[i] != its[i])
        row = logits_of(theirs, [*prompt, *its[:at]])[-1]
        assert (row[ours[at]] - row[its[at]]).abs() < TIE * (row.max() - row.min())
    assert parted <= 1


@torch.inference_mode()
def logits_of(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([[*tokens]]), use_cache=False).logits
    return logits[0]


@torch.inference_mode()
def test_the_mode_is_not_the_other_one(tmp_path: Path) -> None:
    """Both modes of one checkpoint: logits that differ by more than rounding to FP8 of one row."""
    folder, _ = make_fp8_checkpoint(tmp_path, "mimo", MIMO)
    both = [load_tiny(folder, quant=mode) for mode in (QuantMode.W8A8, QuantMode.W8A16)]
    ours, other = (each.target.logits(Plain(each.target, []).states(PROMPTS[0])) for each in both)
    assert 1e-3 < (ours - other).norm() / other.norm() < 0.5


@torch.inference_mode()
def test_a_head_quantises_too(tmp_path: Path) -> None:
    folder, plain = make_fp8_checkpoint(tmp_path, "mimo", MIMO)
    head, values = load_tiny(folder, quant=QuantMode.W8A8).head, load_tiny(plain).head
    assert head is not None and values is not None
    down, its = head.block.mlp.down_proj, values.block.mlp.down_proj
    assert isinstance(down, ScaledLinear) and down.is_w8a8
    x = torch.randn(3, down.in_features)
    torch.testing.assert_close(down(x), its(rounded(x, BLOCK)), rtol=1e-5, atol=1e-6)
    packed = head.block.mlp.gate_proj
    x = torch.randn(3, packed.in_features)
    torch.testing.assert_close(packed(x), values.block.mlp.gate_proj(rounded(x, BLOCK)))
    assert not hasattr(head.proj, "is_w8a8")
