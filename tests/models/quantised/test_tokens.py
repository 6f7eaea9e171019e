"""FP8 checkpoints of each public layout: the tokens are those of the same weights dequantised."""

from pathlib import Path
from typing import Any

import pytest

from cgbench.engine.runner import EagerRunner
from cgbench.kernels.fp8.block_scales import FP8
from cgbench.models.heads.families import DEEPSEEK, MIMO, QWEN, HeadFamily
from cgbench.models.loader import LoadedModel
from tests.support.fp8 import (
    by_channels,
    by_powers_of_two,
    by_tensor,
    compressed,
    is_converted,
    make_fp8_checkpoint,
)
from tests.support.tiny import (
    decode_prompts,
    load_tiny,
    make_speculator,
    make_state,
    random_prompts,
)

# 44 of 24 columns: blocks of 16, and a part; gate and up end within one.
ODD = {"intermediate_size": 44}
ODD_EXPERTS = ODD | {"moe_intermediate_size": 24}
COUNT = 8
HEAD_TOO = {"converts": lambda name, tensor: is_converted(name, tensor) or "eh_proj" in name}
CHANNELS = {"quantise": by_channels, "config": compressed("channel"), "scale_name": "_scale"}
TENSORS = {"quantise": by_tensor, "config": compressed("tensor"), "scale_name": "_scale"}

LAYOUTS: dict[str, tuple[str, HeadFamily, dict[str, Any]]] = {
    "mimo": ("mimo", MIMO, ODD | {"num_shards": 3}),
    "qwen3": ("qwen3", MIMO, ODD),
    "qwen3_moe": ("qwen3_moe", DEEPSEEK, ODD_EXPERTS),
    "glm4_moe": ("glm4_moe", DEEPSEEK, ODD_EXPERTS),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK, ODD_EXPERTS),
    "deepseek_v3-eh_proj": ("deepseek_v3", DEEPSEEK, ODD_EXPERTS | HEAD_TOO),
    "qwen3_5_moe": ("qwen3_5_moe", QWEN, {"num_shards": 2}),
    "qwen3-powers": ("qwen3", MIMO, {"quantise": by_powers_of_two}),
    "qwen3-channels": ("qwen3", MIMO, CHANNELS),
    "qwen3_moe-tensors": ("qwen3_moe", DEEPSEEK, TENSORS),
}


def tokens_of(model: LoadedModel, spec_tokens: int) -> list[list[int]]:
    prompts = random_prompts(3)
    spec = make_speculator(model, max_batch_size=3, room=64)
    runner = EagerRunner(spec, make_state(spec, spec_tokens, 3))
    return decode_prompts(spec, runner, prompts, COUNT).token_ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_and_logits_equal_those_of_the_dequantised_weights(
    layout: str, tmp_path: Path
) -> None:
    kind, family, keywords = LAYOUTS[layout]
    folder, plain = make_fp8_checkpoint(tmp_path, kind, family, **keywords)
    model, reference = load_tiny(folder), load_tiny(plain)
    stored = [*model.target.model.parameters(), *model.head.parameters()]
    assert sum(parameter.dtype == FP8 for parameter in stored) > 8
    assert (model.quant, reference.quant) == ("w8a16", "none")
    assert tokens_of(model, 3) == tokens_of(reference, 3)
