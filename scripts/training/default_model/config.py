"""What the model is, and the shapes of the batches it is trained on."""

from dataclasses import dataclass
from typing import Any

EOS = "<|endoftext|>"
EOS_ID = 0

CONFIG: dict[str, Any] = {
    "architectures": ["MiMoForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "bos_token_id": EOS_ID,
    "eos_token_id": EOS_ID,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": 2048,
    "model_type": "mimo",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 4096,
}

DRAFT_STEPS = 4


@dataclass(frozen=True)
class Shapes:
    """Batch shapes; the defaults are the shipped model's, `--tiny` is for a trial on a CPU."""

    target_batch: int = 16
    target_length: int = 2048
    head_batch: int = 16
    # The rows left for the chain are then 1024 and 320, as fused attention likes them.
    head_length: int = 1024 + DRAFT_STEPS + 1
    generated_batch: int = 48
    generated_length: int = 320 + DRAFT_STEPS + 1
    prompts_per_length: int = 8192
    prompt_lengths: tuple[int, ...] = (64, 96, 128, 192)


TINY = Shapes(2, 128, 2, 64, 4, 64, 32, (16, 32))
