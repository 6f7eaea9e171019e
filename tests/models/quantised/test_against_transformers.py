"""FP8 checkpoints through transformers' own quantiser, and through ours: the same logits.

On a GPU transformers quantises activations too, as W8A8 does. Its kernel comes of the package
``kernels``, from the hub. Where that is missing, the test is skipped.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from cgbench.kernels.fp8.block_scales import quantised
from cgbench.models.heads.families import DEEPSEEK, MIMO, HeadFamily
from cgbench.request.choices import QuantMode
from tests.support.fp8 import BLOCK, FINE_GRAINED, make_fp8_checkpoint
from tests.support.tiny import load_tiny


@pytest.mark.parametrize(("kind", "family"), [("qwen3", MIMO), ("qwen3_moe", DEEPSEEK)])
def test_logits_are_those_of_transformers(kind: str, family: HeadFamily, tmp_path: Path) -> None:
    """Without a GPU it dequantises, and needs sizes that its blocks divide."""
    folder, _ = make_fp8_checkpoint(tmp_path, kind, family)
    stated = FineGrainedFP8Config(weight_block_size=(BLOCK, BLOCK), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=stated, attn_implementation="eager"
    ).eval()
    ours = load_tiny(folder, with_head=False).target.model
    ours.set_attn_implementation("eager")
    ids = torch.randint(64, (2, 9))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "family"), [("qwen3", MIMO), ("qwen3_moe", DEEPSEEK)])
def test_logits_of_quantised_activations_are_those_of_transformers(
    kind: str, family: HeadFamily, tmp_path: Path
) -> None:
    """Two sums in another order round to other FP8 numbers now and then, so the middle of all rows
    is compared, and held against how far the other mode is."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128}
    own = shape if kind == "qwen3_moe" else {**shape, "moe_intermediate_size": None}
    stated = FINE_GRAINED | {"weight_block_size": [128, 128]}
    folder, _ = make_fp8_checkpoint(
        tmp_path,
        kind,
        family,
        quantise=quantised,
        config=stated,
        **{name: size for name, size in own.items() if size is not None},
    )
    try:
        theirs = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map="cuda", attn_implementation="eager"
        ).eval()
        ids = torch.randint(64, (4, 33), device="cuda")
        with torch.no_grad():
            expected = theirs(ids).logits.float()
    except (ImportError, OSError) as error:
        pytest.skip(f"transformers has no FP8 kernel here: {error}")
    errors = {}
    for mode in (QuantMode.W8A8, QuantMode.W8A16):
        how = {"device": "cuda", "dtype": torch.bfloat16, "quant": mode}
        ours = load_tiny(folder, with_head=False, **how).target.model
        ours.set_attn_implementation("eager")
        with torch.no_grad():
            got = ours(ids).logits.float()
        errors[mode] = ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).median()
    assert errors[QuantMode.W8A8] < 0.02
    assert errors[QuantMode.W8A8] < errors[QuantMode.W8A16]
