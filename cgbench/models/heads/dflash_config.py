"""Read what the config.json of a DFlash drafter states: its layers, its block, the states it reads.

The fields of the layers are Qwen3's, at the top. The drafter's own are under ``dflash_config``.
Some of them may stand at the top too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers import Qwen3Config

from cgbench.errors import MissingHeadError
from cgbench.inputs import JsonObject, shown
from cgbench.models.heads.layer_config import layer_config
from cgbench.models.support import ATTENTION_TYPES

NESTED = "dflash_config"
_MASK, _LAYERS, _BLOCK = "mask_token_id", "target_layer_ids", "block_size"
_ARCHITECTURE = "DFlashDraftModel"
# Qwen3Config has defaults for the others, as for a target.
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_KEPT = (
    *(*_NEEDED, "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings"),
    *("attention_bias", "sliding_window", "use_sliding_window", "max_window_layers"),
    "layer_types",
)
# Fields of other drafters with the same trunk, and the values that change nothing.
_OTHER_FORMS: dict[str, tuple[object, ...]] = {
    "projector_type": (None, "dflash"),
    "attention_mode": (None, "gqa", "mha"),
    "selector_rank": (None,),
    "conv_kernel_size": (None,),
    "input_embedding_scale": (None, 1, 1.0),
    "output_multiplier": (None, 1, 1.0),
    "final_logit_softcapping": (None, 0, 0.0),
}


@dataclass(frozen=True, slots=True)
class DFlashForm:
    """A DFlash form states what one drafter has, apart from its weights.

    ``config`` is that of its layers, which are Qwen3's. ``aux_layers`` are the target's layers
    whose input it reads. A block of ``block_size`` positions was trained: the newest token, and
    masks of the token ``mask_token`` for the drafts. ``causal_layers`` are the layers in which a
    position of the block sees no later one.
    """

    config: Qwen3Config
    aux_layers: tuple[int, ...]
    mask_token: int
    block_size: int
    causal_layers: frozenset[int] = frozenset()

    @property
    def most_drafts(self) -> int:
        """Return how many drafts a block has at most."""
        return self.block_size - 1


def is_dflash(raw: Mapping[str, Any]) -> bool:
    """Return whether ``raw``, a config.json, declares a DFlash drafter or one of its kin."""
    architectures = raw.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return NESTED in raw or any("DFlash" in name for name in names if isinstance(name, str))


def read_dflash_form(
    ref: str, raw: JsonObject, num_layers: int, hidden_size: int, last_token: int
) -> DFlashForm:
    """Return the form that ``raw``, the config.json of ``ref``, states.

    ``num_layers``, ``hidden_size`` and ``last_token`` are the target's. Raise ``MissingHeadError``
    with the field and what it must be.
    """
    where = f"{ref}: config.json"
    if not raw:
        raise MissingHeadError(
            f"{ref}: a DFlash drafter needs its config.json, which states the states it reads"
        )
    nested = raw.get(NESTED, {})
    if not isinstance(nested, dict):
        raise MissingHeadError(f"{where}: {NESTED} {shown(nested)}: must be an object")
    _check_form(where, raw, nested)
    config = _layer_config(where, raw)
    if config.hidden_size != hidden_size:
        raise MissingHeadError(
            f"{where}: hidden_size {config.hidden_size}: a DFlash drafter has its target's, which "
            f"is {hidden_size}: it is of another target"
        )
    made_for = raw.get("num_target_layers", nested.get("num_target_layers"))
    if made_for not in (None, num_layers):
        raise MissingHeadError(
            f"{where}: num_target_layers {shown(made_for)}: the target has {num_layers} layers: "
            "the drafter is of another target"
        )
    return DFlashForm(
        config,
        _aux_layers(where, _either(raw, nested, _LAYERS), num_layers),
        _whole(where, _MASK, _either(raw, nested, _MASK), 0, last_token),
        _whole(where, _BLOCK, _either(raw, nested, _BLOCK), 2, 1024),
        _causal_layers(where, raw, nested, config),
    )


def _either(raw: Mapping[str, Any], nested: Mapping[str, Any], name: str) -> object:
    value = nested.get(name)
    return raw.get(name) if value is None else value


def _check_form(where: str, raw: Mapping[str, Any], nested: Mapping[str, Any]) -> None:
    """Refuse the drafters of DFlash's kin that cannot be run here, such as DFlash 2."""
    architectures = raw.get("architectures") or [_ARCHITECTURE]
    if architectures != [_ARCHITECTURE]:
        raise MissingHeadError(
            f"{where}: architectures {shown(architectures)}: of parallel drafters {_ARCHITECTURE} "
            "alone can be run here"
        )
    for name, harmless in _OTHER_FORMS.items():
        value = _either(raw, nested, name)
        if value not in harmless:
            raise MissingHeadError(
                f"{where}: {name} {shown(value)}: such a DFlash drafter cannot be run here"
            )
    if raw.get("quantization_config") is not None:
        raise MissingHeadError(
            f"{where}: quantization_config: a quantised DFlash drafter cannot be run here. Give "
            "--head with a bfloat16 or float16 one"
        )


def _layer_config(where: str, raw: JsonObject) -> Qwen3Config:
    kind = raw.get("model_type", "qwen3")
    if kind != "qwen3":
        raise MissingHeadError(
            f"{where}: model_type {shown(kind)}: the layers of a DFlash drafter are run as Qwen3's "
            "alone"
        )
    for name in _NEEDED:
        if raw.get(name) is None:
            raise MissingHeadError(f"{where}: {name}: must be there")
    kept = {name: raw[name] for name in _KEPT if raw.get(name) is not None}
    config = layer_config(where, "a DFlash drafter", Qwen3Config, kept)
    if unknown := sorted(set(config.layer_types) - ATTENTION_TYPES):
        raise MissingHeadError(
            f"{where}: layer_types has '{unknown[0]}': the layers of a DFlash drafter have full or "
            "sliding attention"
        )
    return config


def _aux_layers(where: str, stated: object, num_layers: int) -> tuple[int, ...]:
    """Return the layers that read the states that ``target_layer_ids`` names the writers of.

    The last layer's is no state of z-lab's list, where the final norm has been applied to it.
    """
    is_list = isinstance(stated, list) and all(type(each) is int for each in stated)
    numbers: list[int] = stated if is_list else []  # type: ignore[assignment]
    ascending = all(one < other for one, other in pairwise(numbers))
    if not numbers or not ascending or numbers[0] < 0 or numbers[-1] > num_layers - 2:
        raise MissingHeadError(
            f"{where}: {_LAYERS} {shown(stated)}: must list layers from 0 to {num_layers - 2} in "
            "ascending order, those of the target whose output the drafter reads"
        )
    return tuple(number + 1 for number in numbers)


def _whole(where: str, name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise MissingHeadError(
            f"{where}: {name} {shown(value)}: must be a whole number from {least} to {most}"
        )
    return value


def _causal_layers(
    where: str, raw: Mapping[str, Any], nested: Mapping[str, Any], config: Qwen3Config
) -> frozenset[int]:
    """Return the layers that are causal inside a block.

    ``is_causal`` states it of all. Without it those of sliding attention are, as in z-lab's code.
    """
    stated = raw.get("is_causal")
    stated = nested.get("causal") if stated is None else stated
    if stated not in (None, True, False):
        raise MissingHeadError(f"{where}: is_causal {shown(stated)}: must be true or false")
    types = enumerate(config.layer_types)
    sliding = frozenset(number for number, kind in types if kind == "sliding_attention")
    if stated is None:
        return sliding
    return frozenset(range(config.num_hidden_layers)) if stated else frozenset()
