"""Step-3.5 is Step-3.7's text side alone, for which transformers has a config and no causal LM.

Importing this module registers with transformers how its checkpoints' names are mapped.
"""

from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import (
    Step3p7PreTrainedModel,
    Step3p7TextModel,
)


class Step3p5ForCausalLM(Step3p7PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """This class is Step-3.7's text model with an lm_head, under Step-3.5's names."""

    config: Step3p7TextConfig
    config_class = Step3p7TextConfig
    input_modalities = ("text",)
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: Step3p7TextConfig) -> None:
        super().__init__(config)
        self.model = Step3p7TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_config(cls, config: Step3p7TextConfig, **choices: Any) -> "Step3p5ForCausalLM":
        """Make a model of ``config``, as transformers' Auto classes do."""
        made: Step3p5ForCausalLM = cls._from_config(config, **choices)
        return made

    def forward(
        self,
        input_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the logits ``[B, S, V]`` of the last ``logits_to_keep`` positions, 0 for all."""
        out = self.model(input_ids=input_ids, **others)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)


def _register() -> None:
    """Register the renames and fusions that Step-3.7's checkpoints and these share."""
    within_layers = (r"moe", r"share_expert")
    mapping = [
        each
        for each in get_checkpoint_conversion_mapping("step3p7") or ()
        if any(part in pattern for pattern in each.source_patterns for part in within_layers)
    ]
    register_checkpoint_conversion_mapping(Step3p5ForCausalLM.__name__, mapping, overwrite=True)


_register()
