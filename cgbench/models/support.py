"""Refuse what cannot run or cannot be captured, by name, before any weight is loaded."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from cgbench.errors import UnsupportedModelError
from cgbench.models.added.step3p5 import Step3p5ForCausalLM
from cgbench.models.attention_hook import ATTENTION_NAME
from cgbench.models.quantised.scheme import read_scheme
from cgbench.models.recurrent_hook import GATED_DELTA_TYPES, LINEAR_ATTENTION

# transformers' Auto classes that make a decoder, in the order they are asked.
_AUTO_CLASSES = (
    (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
)

_ADDED: dict[type[PretrainedConfig], type[PreTrainedModel]] = {
    Step3p5ForCausalLM.config_class: Step3p5ForCausalLM
}
"""What transformers has a config for and no causal LM."""

ATTENTION_TYPES = {"full_attention", "sliding_attention"}
# transformers' rotary types that recompute their frequencies from the largest position.
HOST_READ_ROPE_TYPES = {"dynamic", "longrope"}


def auto_class_for(config: PretrainedConfig) -> Any:
    """transformers' Auto class that makes this model, or a class of ours that makes it alike. Of a
    multimodal one only text is run.

    Raises ``UnsupportedModelError`` where there is none.
    """
    for mapping, auto_class in _AUTO_CLASSES:
        if type(config) in mapping:
            return auto_class
    if type(config) in _ADDED:
        return _ADDED[type(config)]
    raise UnsupportedModelError(
        f"MODEL: {config.model_type} is no decoder-only language model that transformers knows"
    )


def class_name(config: PretrainedConfig) -> str:
    """The model class that ``auto_class_for`` makes of a config."""
    for mapping, _ in _AUTO_CLASSES:
        if type(config) in mapping:
            return str(mapping[type(config)].__name__)
    added = _ADDED.get(type(config))
    return str(config.model_type) if added is None else added.__name__


def check_config(config: PretrainedConfig) -> None:
    """Refuse, by name, what can be told from the config alone.

    Raises ``UnsupportedModelError``.
    """
    auto_class_for(config)
    kind = class_name(config)
    try:
        config.get_text_config()
    except ValueError as error:
        raise UnsupportedModelError(f"MODEL: {kind} has several text parts") from error
    read_scheme(config, kind)
    if getattr(config.get_text_config(), "use_bidirectional_attention", None) is True:
        raise UnsupportedModelError(
            f"MODEL: {kind} attends in both directions (use_bidirectional_attention): it does not "
            "decode"
        )
    if other := _other_layer_types(config.get_text_config()):
        raise UnsupportedModelError(
            f"MODEL: {kind} has layers of type {', '.join(other)}; only full and sliding attention "
            "can be run, and of recurrent hybrids Qwen3-Next and Qwen3.5; preset:mimo-7b is a "
            "model that works"
        )


def _other_layer_types(config: PretrainedConfig) -> list[str]:
    """The layer types that cannot be run. Linear attention has many forms under one name."""
    known = set(ATTENTION_TYPES)
    if config.model_type in GATED_DELTA_TYPES:
        known.add(LINEAR_ATTENTION)
    return sorted(set(getattr(config, "layer_types", None) or ()) - known)


def check_capturable(config: PretrainedConfig) -> None:
    """Refuse, by name, what reads a device value on the host in its forward.

    Raises ``UnsupportedModelError``. Source: transformers' rotary types ``dynamic`` and
    ``longrope`` recompute their frequencies from the largest position.
    """
    if found := sorted(rope_types(config) & HOST_READ_ROPE_TYPES):
        raise UnsupportedModelError(
            f"MODEL: {class_name(config)} has rotary type '{found[0]}', which cannot be captured; "
            "--scopes eager runs without graphs"
        )


def rope_types(config: PretrainedConfig) -> set[str]:
    """The config's rotary types; some models have one for each type of layer."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type", "default")) for each in [parameters, *nested]}


def check_windows(model: PreTrainedModel, windows: dict[int, int | None]) -> None:
    """Refuse a model that keeps its sliding window to its own masks, so that attention is not told.

    ``windows``: what each layer's attention was told. Raises ``UnsupportedModelError``.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not window or window >= getattr(config, "max_position_embeddings", float("inf")):
        return
    if not getattr(config, "use_sliding_window", True):
        return
    told = {layer for layer, each in windows.items() if each is not None}
    if types := getattr(config, "layer_types", None):
        slides = {layer for layer, kind in enumerate(types) if kind == "sliding_attention"}
        is_lost = bool(slides & set(windows) - told)
    else:
        is_lost = not told
    if is_lost:
        raise UnsupportedModelError(
            f"{type(model).__name__}: does not tell its attention of its sliding window of "
            f"{window} tokens; it can be run only where config.json has none"
        )


def check_supported(model: PreTrainedModel) -> None:
    """Refuse, by name, a model whose parts the engine cannot work with."""
    kind = type(model).__name__
    for part in ("layers", "norm", "rotary_emb"):
        if not hasattr(model.get_decoder(), part):
            raise UnsupportedModelError(
                f"{kind}: its backbone has no '{part}'; "
                "only decoder-only models with rotary positions can be run"
            )
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        raise UnsupportedModelError(f"{kind}: attention soft-capping is not supported")
    if config._attn_implementation != ATTENTION_NAME:
        raise UnsupportedModelError(f"{kind}: refused the attention implementation 'cgbench'")
