"""FP8 checkpoints through transformers' own quantiser, and through ours: the same logits."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from cgbench.models.heads.families import DEEPSEEK, MIMO, HeadFamily
from tests.support.fp8 import BLOCK, make_fp8_checkpoint
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
