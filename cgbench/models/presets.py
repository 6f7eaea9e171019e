"""Shape presets: public models' configurations, to be filled with random weights. No torch here.

A preset measures a shape, never a model's quality; every output labels it "random weights".
To add one, add an entry: the config as the public checkpoint states it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Preset:
    """``config`` is the public ``config.json``'s content that decides shapes; ``source`` names it.

    The head, one MTP module, has MiMo's form.
    """

    name: str
    source: str
    config: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="mimo-7b",
            source="XiaomiMiMo/MiMo-7B-Base config.json",
            config={
                "model_type": "mimo",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 151680,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5,
                "rope_theta": 640000.0,
                "tie_word_embeddings": False,
                "attention_bias": True,
                "use_sliding_window": False,
                "num_nextn_predict_layers": 1,
                "eos_token_id": 151643,
            },
        ),
    )
}
