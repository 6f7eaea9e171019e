"""Read what the config.json of an EAGLE-3 head states: its layer, and the target's layers it reads.

Three public layouts are known. SafeAILab's and vLLM's state the layer's fields at the top.
speculators' states them under ``transformer_layer_config``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from cgbench.errors import MissingHeadError
from cgbench.inputs import JsonObject, shown
from cgbench.models.heads.families import EAGLE3
from cgbench.models.heads.layer_config import layer_config

AUX_FIELD = "eagle_aux_hidden_state_layer_ids"
_NESTED = "eagle_config"
_LAYER = "transformer_layer_config"
_RESIDUAL = "norm_before_residual"
# LlamaConfig has defaults for the others, as for a target.
_NEEDED = ("hidden_size", "intermediate_size", "num_attention_heads")
_KEPT = (
    *(*_NEEDED, "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings"),
    *("attention_bias", "mlp_bias"),
)
# EAGLE-3.1's switches, and vLLM's for drafts that are made all at once.
_OTHER_FORMS = ("fc_norm", "norm_before_fc", "norm_output", "parallel_drafting")


@dataclass(frozen=True, slots=True)
class Eagle3Form:
    """An EAGLE-3 form states what one head has, apart from its weights.

    ``config`` is that of its layer, which is Llama's. ``aux_layers`` are the target's layers whose
    input the head reads. The number of layers stands for the final norm. ``target_ids [D]`` are the
    target's tokens that the head can draft, None if it drafts them all. ``norm_before_residual``:
    the residual is the hidden state after its norm.
    """

    config: LlamaConfig
    aux_layers: tuple[int, ...]
    norm_before_residual: bool = False
    target_ids: Tensor | None = field(default=None, compare=False)


def read_form(ref: str, raw: JsonObject, num_layers: int, hidden_size: int) -> Eagle3Form:
    """Return the form that ``raw``, the config.json of ``ref``, states. Its token map is left out.

    ``num_layers`` and ``hidden_size`` are the target's. Raise ``MissingHeadError`` with the field
    and what it must be.
    """
    where = f"{ref}: config.json"
    if not raw:
        raise MissingHeadError(
            f"{ref}: an EAGLE-3 head needs its config.json, which states the sizes of its layer"
        )
    _check_form(where, raw)
    made_for = raw.get("target_hidden_size")
    if made_for not in (None, hidden_size):
        raise MissingHeadError(
            f"{where}: target_hidden_size {shown(made_for)}: the target's hidden size is "
            f"{hidden_size}: the head is of another target"
        )
    config = _layer_config(where, raw)
    if config.hidden_size == EAGLE3.num_aux * hidden_size:
        raise MissingHeadError(
            f"{where}: hidden_size {config.hidden_size}: an EAGLE-3 head as wide as three of its "
            "target's states cannot be run here"
        )
    return Eagle3Form(config, aux_layers(where, raw, num_layers), _residual(where, raw))


def _check_form(where: str, raw: Mapping[str, Any]) -> None:
    """Refuse the forms of EAGLE-3 that cannot be run here."""
    layer = _object(where, raw, _LAYER)
    nested = _object(where, raw, _NESTED)
    for each in (raw, layer, nested):
        for name in _OTHER_FORMS:
            if each.get(name):
                raise MissingHeadError(
                    f"{where}: {name} {shown(each[name])}: such an EAGLE-3 head cannot be run here"
                )
    if nested.get("use_aux_hidden_state") is False:
        raise MissingHeadError(
            f"{where}: {_NESTED}.use_aux_hidden_state false: such an EAGLE-3 head cannot be run "
            "here"
        )


def _layer_config(where: str, raw: JsonObject) -> LlamaConfig:
    prefix = f"{_LAYER}." if raw.get(_LAYER) is not None else ""
    stated = _object(where, raw, _LAYER) if prefix else raw
    kind = stated.get("model_type", "llama")
    if kind != "llama":
        raise MissingHeadError(
            f"{where}: {prefix}model_type {shown(kind)}: the layer of an EAGLE-3 head is run as "
            "Llama's alone"
        )
    if stated.get("num_hidden_layers", 1) != 1:
        raise MissingHeadError(
            f"{where}: {prefix}num_hidden_layers {shown(stated['num_hidden_layers'])}: an EAGLE-3 "
            "head can be run with one layer alone"
        )
    for name in _NEEDED:
        if stated.get(name) is None:
            raise MissingHeadError(f"{where}: {prefix}{name}: must be there")
    kept = {name: stated[name] for name in _KEPT if stated.get(name) is not None}
    return layer_config(where, "an EAGLE-3 head", LlamaConfig, kept, num_hidden_layers=1)


def aux_layers(where: str, raw: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Return the target's layers whose input the head reads, in ascending order.

    At the top of config.json a number names the layer that reads the state, as in vLLM and
    speculators. Under ``eagle_config`` it names the layer that writes it, as in SGLang and
    ModelOpt. Without either they are 2, n / 2 and n - 3 of n layers, as in SafeAILab's code.

    Raise ``MissingHeadError`` if they are not three layers of the target.
    """
    read = _numbers(where, AUX_FIELD, raw.get(AUX_FIELD))
    nested = f"{_NESTED}.{AUX_FIELD}"
    written = _numbers(where, nested, _object(where, raw, _NESTED).get(AUX_FIELD))
    after = tuple(number + 1 for number in written)
    if read and after and read != after:
        raise MissingHeadError(
            f"{where}: {AUX_FIELD} {_listed(read)} and {nested} {_listed(written)} name different "
            "layers. The former counts the layers that read a state, the latter those that write it"
        )
    layers = read or after or (2, num_layers // 2, num_layers - 3)
    is_ascending = all(one < other for one, other in pairwise(layers))
    if (
        len(layers) != EAGLE3.num_aux
        or not is_ascending
        or layers[0] < 0
        or layers[-1] > num_layers
    ):
        stated = AUX_FIELD if read else nested
        what = f"{stated} {_listed(read or written)}" if read or written else f"{AUX_FIELD} missing"
        default = "" if read or written else f", and the default {_listed(layers)} is not"
        raise MissingHeadError(
            f"{where}: {what}: must be three layers of the target's {num_layers} in ascending "
            f"order{default}"
        )
    return layers


def _residual(where: str, raw: Mapping[str, Any]) -> bool:
    value = raw.get(_RESIDUAL)
    if value is None and raw.get(_LAYER) is None:
        return False
    if not isinstance(value, bool):
        # speculators' own default is false, and vLLM's for its heads is true.
        raise MissingHeadError(f"{where}: {_RESIDUAL}: must be there, true or false")
    return value


def _object(where: str, raw: Mapping[str, Any], name: str) -> JsonObject:
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MissingHeadError(f"{where}: {name} {shown(value)}: must be an object")
    return value


def _numbers(where: str, name: str, value: object) -> tuple[int, ...]:
    numbers = [] if value is None else value
    if not isinstance(numbers, list) or not all(type(each) is int for each in numbers):
        raise MissingHeadError(f"{where}: {name} {shown(value)}: must be a list of layer numbers")
    return tuple(numbers)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
