"""Check each field of ``config.json`` that is used against what it must be.

Fields are checked before transformers sees them, because its own errors name no file. Some values,
such as a billion layers, would keep it busy for hours. Relations between fields are checked
afterwards, because a field that is left out has its class's default.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from cgbench.errors import ModelError
from cgbench.inputs import MAX_WHOLE, JsonObject, lone_surrogate, shown

MAX_LAYERS = 256
"""A model may have at most this many layers, twice the number of the deepest public one.

So many take about two seconds to make without storage.
"""

MAX_EXPERTS = 16_384
"""A layer may have at most this many experts, which is Doge's number.

Doge's experts are rows of a matrix. Other models have 512 at most, each with a name in the
checkpoint.
"""

MAX_SIZE = 2**24
"""A width or a vocabulary may be at most this large.

A matrix of two such sizes is still addressed by 64 bits.
"""

MAX_DEPTH = 32
"""Objects and lists of a config may be nested at most this deep."""

# The largest whole number that a float holds exactly.
_MAX_NUMBER = 2**53

# Some recurrent layers write an unbounded step as Infinity.
_MAY_BE_INFINITE = "time_step_limit"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind is a rule for a field's value: in words for the error message, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int, most: int) -> Kind:
    return Kind(
        f"a whole number from {least} to {most:,}",
        lambda value: _is_whole(value) and least <= value <= most,
    )


def _number(words: str, holds: Callable[[float], bool]) -> Kind:
    def is_one(value: object) -> bool:
        is_number = _is_whole(value) or isinstance(value, float)
        return is_number and abs(value) <= _MAX_NUMBER and holds(value)  # type: ignore[arg-type]

    return Kind(f"a number {words}", is_one)


def _list_of(kind: Kind) -> Kind:
    return Kind(
        f"a list, each entry {kind.words}",
        lambda value: isinstance(value, list) and all(map(kind.holds, value)),
    )


def _or_list_of(kind: Kind) -> Kind:
    """Return the kind of a value for all layers, or of a list with one for each."""
    each = _list_of(kind)
    return Kind(kind.words, lambda value: kind.holds(value) or each.holds(value))


def _is_dtype(value: object) -> bool:
    # A multimodal config may state a type for each of its parts.
    if isinstance(value, dict):
        return all(map(_is_dtype, value.values()))
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    return name == "auto" or isinstance(getattr(torch, name, None), torch.dtype)


_SIZE = _or_list_of(_whole(1, MAX_SIZE))
_SIZE_OR_NONE = _or_list_of(_whole(0, MAX_SIZE))
_LAYERS = _whole(1, MAX_LAYERS)
_NUM_LAYERS = _whole(0, MAX_LAYERS)
_EXPERTS = _or_list_of(_whole(0, MAX_EXPERTS))
_GROUPS = _whole(1, MAX_EXPERTS)
_POSITIONS = _whole(1, MAX_WHOLE)
_WINDOW = _or_list_of(_whole(0, MAX_WHOLE))
_ABOVE_0 = _or_list_of(_number("above 0", lambda value: value > 0))
_FROM_0 = _number("of at least 0", lambda value: value >= 0)
_SHARE = _or_list_of(_number("above 0 and at most 1", lambda value: 0 < value <= 1))
_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = Kind("text", lambda value: isinstance(value, str))
_TEXTS = _list_of(_TEXT)
_KNOWN_TYPE = Kind(
    "a model type that transformers knows",
    lambda value: isinstance(value, str) and value in CONFIG_MAPPING,
)
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_TOKENS = _or_list_of(_whole(0, MAX_SIZE))
_DTYPE = Kind("a type of torch, such as bfloat16", _is_dtype)


def _fields(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


FIELDS: dict[str, Kind] = {
    **_fields(_TEXT, "model_type hidden_act hidden_activation rope_type type"),
    **_fields(_SIZE, "hidden_size intermediate_size vocab_size v_head_dim kv_lora_rank"),
    **_fields(_SIZE, "num_attention_heads num_key_value_heads"),
    **_fields(_SIZE, "linear_num_key_heads linear_num_value_heads linear_key_head_dim"),
    **_fields(_SIZE, "linear_value_head_dim linear_conv_kernel_dim"),
    **_fields(_SIZE_OR_NONE, "head_dim q_lora_rank qk_nope_head_dim qk_rope_head_dim"),
    **_fields(_SIZE, "moe_intermediate_size"),
    **_fields(_SIZE_OR_NONE, "shared_expert_intermediate_size"),
    **_fields(_LAYERS, "num_hidden_layers"),
    **_fields(_NUM_LAYERS, "num_nextn_predict_layers mtp_num_hidden_layers num_mtp_layers"),
    **_fields(_NUM_LAYERS, "mtp_num_layers num_nextn_layers first_k_dense_replace"),
    **_fields(_WINDOW, "max_window_layers sliding_window"),
    **_fields(_EXPERTS, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_fields(_EXPERTS, "num_experts_per_tok moe_k n_shared_experts moe_num_shared_experts"),
    **_fields(_GROUPS, "n_group topk_group"),
    **_fields(_POSITIONS, "max_position_embeddings original_max_position_embeddings"),
    **_fields(_ABOVE_0, "rope_theta factor rms_norm_eps layer_norm_eps norm_eps"),
    **_fields(_FROM_0, "initializer_range final_logit_softcapping attn_logit_softcapping"),
    **_fields(_ABOVE_0, "logits_scaling logit_scale output_multiplier routed_scaling_factor"),
    **_fields(_SHARE, "partial_rotary_factor"),
    **_fields(_FLAG, "tie_word_embeddings use_sliding_window attention_bias norm_topk_prob"),
    **_fields(_TEXTS, "architectures layer_types mtp_layer_types mlp_layer_types"),
    **_fields(_OBJECT, "text_config vision_config rope_parameters rope_scaling"),
    **_fields(_OBJECT, "quantization_config"),
    **_fields(_TOKENS, "eos_token_id"),
    **_fields(_DTYPE, "dtype torch_dtype"),
}
"""These fields are checked, under the names that transformers uses.

A config class's own names for them are looked up in the class.
"""

# Objects within config.json whose fields mean what they mean outside.
_SAME_FIELDS = ("text_config", "rope_parameters", "rope_scaling")

# The most that a field may count, by a part of its name. What it counts is made one by one.
_MANY = {"layers": 1024, "depth": 1024, "experts": MAX_EXPERTS, "num_labels": 65_536}

# A field, and the field that it must divide.
_DIVISORS = (
    ("num_key_value_heads", "num_attention_heads"),
    ("linear_num_key_heads", "linear_num_value_heads"),
    ("n_group", "n_routed_experts"),
)

# How names of a head's own size end.
_HEAD_SIZES = ("head_dim", "head_size", "kv_channels")

# A field, and the fields that it must not exceed.
_AT_MOST = (
    ("num_experts_per_tok", "num_experts"),
    ("num_experts_per_tok", "n_routed_experts"),
    ("num_experts_per_tok", "num_local_experts"),
    ("topk_group", "n_group"),
)


def check_fields(where: str, raw: object) -> JsonObject:
    """Check each known field of ``config.json``, and return its content.

    ``null`` counts as left out, so the field gets its class's default, or causes an error of the
    class. Raise ``ModelError`` if a field is not what it must be. The message starts with
    ``where``.
    """
    if not isinstance(raw, dict):
        raise ModelError(f"{where}: must be an object, not {shown(raw)}")
    if not isinstance(raw.get("model_type"), str):
        raise ModelError(f"{where}: model_type: must be there, as text")
    _check_object(where, "", raw, _fields_of(raw["model_type"]))
    check_values(where, raw)
    return raw


def _fields_of(model_type: str) -> dict[str, Kind]:
    """Return ``FIELDS``, and the same kinds under the names that this type's config has for
    them."""
    known = model_type in CONFIG_MAPPING
    names = CONFIG_MAPPING[model_type].attribute_map if known else {}
    own = {theirs: FIELDS[ours] for ours, theirs in names.items() if ours in FIELDS}
    return own | FIELDS


def check_values(where: str, value: object, path: str = "", depth: int = 1) -> None:
    """Check each value of a config for what no field may be, at any depth.

    Raise ``ModelError`` with the path of the first bad value.
    """
    if depth > MAX_DEPTH:
        raise ModelError(f"{where}: nested too deep: over {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for name, entry in value.items():
            check_values(where, entry, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            check_values(where, entry, path, depth + 1)
    elif (must := _must_be(path, value)) is not None:
        raise ModelError(f"{where}: {path} {shown(value)}: must be {must}")


def _must_be(path: str, value: object) -> str | None:
    """Return what the value of a field must be, or None if it is that."""
    name = path.rpartition(".")[2]
    if isinstance(value, str):
        return "text without lone surrogates" if lone_surrogate(value) else None
    if isinstance(value, float):
        is_good = math.isfinite(value) or name == _MAY_BE_INFINITE
        return None if is_good else "a finite number"
    if _is_whole(value):
        most = min((most for part, most in _MANY.items() if part in name), default=_MAX_NUMBER)
        return None if abs(value) <= most else f"a whole number of at most {most:,}"  # type: ignore[arg-type]
    return None


def _check_object(where: str, prefix: str, raw: JsonObject, fields: dict[str, Kind]) -> None:
    for name, value in raw.items():
        kind = _KNOWN_TYPE if prefix and name == "model_type" else fields.get(name)
        if kind is None or (value is None and kind is not _KNOWN_TYPE):
            continue
        if not kind.holds(value):
            raise ModelError(f"{where}: {prefix}{name} {shown(value)}: must be {kind.words}")
        if name in _SAME_FIELDS:
            _check_object(where, f"{prefix}{name}.", value, fields)


def keep_tails(config: PretrainedConfig, raw: JsonObject) -> PretrainedConfig:
    """Give ``config``, made of ``raw``, what the ends of per-layer lists state of a head's modules.

    Step's lists have an entry more for each module. transformers cuts them off, and keeps those of
    a few lists as ``mtp_...``. Here the others are kept so too.
    """
    try:
        text = config.get_text_config()
    except ValueError:
        # Of several text parts none is the model's, which is refused elsewhere.
        return config
    count = getattr(text, "num_hidden_layers", None)
    for name, stated in (raw.get("text_config") or raw).items():
        kept = vars(text).get(name)
        is_cut = isinstance(stated, list) and isinstance(kept, list) and len(kept) == count
        if is_cut and len(stated) > len(kept) and f"mtp_{name}" not in vars(text):
            setattr(text, f"mtp_{name}", stated[len(kept) :])
    return config


def check_relations(where: str, config: PretrainedConfig, raw: JsonObject) -> None:
    """Check the fields of ``config``, made from ``raw``, that must fit together.

    Raise ``ModelError`` if fields are good alone and not together.
    """
    try:
        text = config.get_text_config()
    except ValueError:
        # None of several text parts is the model's. No field is wrong, so nothing is refused here.
        return
    prefix = "" if text is config else "text_config."
    for name, must in _broken_relations(text):
        raise ModelError(f"{where}: {prefix}{name} {shown(getattr(text, name))}: must {must}")
    # Not the default, because in some classes it is that of another size.
    for stated in (raw, raw.get("text_config") or {}):
        check_end_tokens(where, stated.get("eos_token_id"), text)


def _broken_relations(text: PretrainedConfig) -> Iterator[tuple[str, str]]:
    for name, of in (*_DIVISORS, *_head_divisors(text)):
        part, whole = _whole_of(text, name), _whole_of(text, of)
        if part and whole and whole % part:
            yield name, f"divide {of}, {whole}"
    for name, of in _AT_MOST:
        part, whole = _whole_of(text, name), _whole_of(text, of)
        if part and whole and part > whole:
            yield name, f"be at most {of}, {whole}"


def _head_divisors(text: PretrainedConfig) -> tuple[tuple[str, str], ...]:
    """Return the fields that must divide each other if a head has no size of its own.

    Such a head is an even part of the hidden size.
    """
    has_size = any(_whole_of(text, name) for name in vars(text) if name.endswith(_HEAD_SIZES))
    return () if has_size else (("num_attention_heads", "hidden_size"),)


def _whole_of(text: PretrainedConfig, name: str) -> int | None:
    """Return a field's value for all layers, or None if it differs by layer or is not there."""
    if getattr(text, "is_heterogeneous", False):
        return None
    value = getattr(text, name, None)
    return value if isinstance(value, int) else None


def check_end_tokens(where: str, eos: object, text: PretrainedConfig) -> None:
    """Check that the target can emit the end tokens. Raise ``ModelError`` if it cannot."""
    kind = _whole(0, (_whole_of(text, "vocab_size") or MAX_SIZE) - 1)
    for token in eos if isinstance(eos, list | tuple) else [eos]:
        if token is not None and not kind.holds(token):
            raise ModelError(
                f"{where}: eos_token_id {shown(token)}: must be {kind.words}, the last token of "
                "the vocabulary"
            )
