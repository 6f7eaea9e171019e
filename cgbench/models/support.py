"""Refuse models that cannot run or cannot be captured, before any weight is loaded."""

from typing import Any

import transformers
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

_RELEASE = tuple(map(int, transformers.__version__.split(".")[:2]))
GENERATE_CACHE = "cache" if _RELEASE >= (5, 24) else "past_key_values"
"""transformers' ``generate`` calls the cache that it is given so."""

ATTENTION_TYPES = {"full_attention", "sliding_attention"}
# These rotary types of transformers recompute their frequencies from the largest position.
HOST_READ_ROPE_TYPES = {"dynamic", "longrope"}


def auto_class_for(config: PretrainedConfig) -> Any:
    """Return transformers' Auto class that makes this model, or a class of ours that does.

    Only the text part of a multimodal model is run. Raise ``UnsupportedModelError`` if there is no
    such class.
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
    """Return the name of the model class that ``auto_class_for`` makes of a config.

    It is the model type if there is no such class.
    """
    for mapping, _ in _AUTO_CLASSES:
        if type(config) in mapping:
            return str(mapping[type(config)].__name__)
    added = _ADDED.get(type(config))
    return str(config.model_type) if added is None else added.__name__


def check_config(config: PretrainedConfig) -> None:
    """Check from the config alone that the model can be run.

    Raise ``UnsupportedModelError`` with what is not supported.
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
            f"MODEL: {kind} has layers of type {', '.join(other)}. Only full and sliding attention "
            "can be run, and of recurrent hybrids Qwen3-Next and Qwen3.5. preset:mimo-7b is a "
            "model that works"
        )


def _other_layer_types(config: PretrainedConfig) -> list[str]:
    """Return the layer types that cannot be run.

    Linear attention has many forms under one name.
    """
    known = set(ATTENTION_TYPES)
    if config.model_type in GATED_DELTA_TYPES:
        known.add(LINEAR_ATTENTION)
    return sorted(set(getattr(config, "layer_types", None) or ()) - known)


def check_capturable(config: PretrainedConfig) -> None:
    """Check that the model's forward reads no device value on the host.

    transformers' rotary types ``dynamic`` and ``longrope`` do, because they recompute their
    frequencies from the largest position. Raise ``UnsupportedModelError`` for them.
    """
    if found := sorted(rope_types(config) & HOST_READ_ROPE_TYPES):
        raise UnsupportedModelError(
            f"MODEL: {class_name(config)} has rotary type '{found[0]}', which cannot be captured. "
            "--scopes eager runs without graphs"
        )


def rope_types(config: PretrainedConfig) -> set[str]:
    """Return the config's rotary types.

    Some models have one for each type of layer.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type", "default")) for each in [parameters, *nested]}


def check_windows(model: PreTrainedModel, windows: dict[int, int | None]) -> None:
    """Check that the model passes its sliding window to its attention.

    Some models only put it into masks of their own. ``windows`` holds the window that each layer's
    attention was given. Raise ``UnsupportedModelError`` if one is missing.
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
            f"{window} tokens. It can be run only where config.json has none"
        )


def check_supported(model: PreTrainedModel) -> None:
    """Check that the engine can work with the parts of a model.

    Raise ``UnsupportedModelError`` with the part if it cannot.
    """
    kind = type(model).__name__
    for part in ("layers", "norm", "rotary_emb"):
        if not hasattr(model.get_decoder(), part):
            raise UnsupportedModelError(
                f"{kind}: its backbone has no '{part}'. "
                "Only decoder-only models with rotary positions can be run"
            )
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        raise UnsupportedModelError(f"{kind}: attention soft-capping is not supported")
    if config._attn_implementation != ATTENTION_NAME:
        raise UnsupportedModelError(f"{kind}: refused the attention implementation 'cgbench'")
