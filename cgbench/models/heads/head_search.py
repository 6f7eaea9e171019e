"""Find which family's head a checkpoint holds, and under which names.

The tensor names and the model type decide.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from cgbench.errors import MissingHeadError
from cgbench.models.checkpoint import all_tensor_files, raw_config
from cgbench.models.heads.families import FAMILIES, HeadFamily
from cgbench.models.heads.head_wiring import differences, stated_in
from cgbench.request.parts import HeadWiring

# The beginning of a layer's name is the name of a checkpoint's model.
_LAYER = re.compile(r"((?:.*?\.)?)layers\.\d+\.")
_DECLARED = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")


@dataclass(frozen=True, slots=True)
class HeadFolder:
    """A head folder is a place where a head is looked for.

    ``files`` maps every tensor's name to its file. ``model_types`` are those that config.json
    names, and ``stated`` is the wiring that it states. ``is_apart``: it is another folder than the
    target's.
    """

    ref: str
    files: Mapping[str, Path]
    model_types: frozenset[str]
    stated: HeadWiring
    is_apart: bool

    @property
    def prefixes(self) -> list[str]:
        """Return the prefixes of a model's layers in this folder, the usual ones first."""
        found = (match[1] for name in self.files if (match := _LAYER.match(name)))
        return list(dict.fromkeys(["model.", "", *found]))


def open_folder(ref: str, target_types: frozenset[str], *, is_apart: bool) -> HeadFolder:
    """Return the head folder of the folder or hub id ``ref``.

    ``target_types`` count if its config.json names no type. Raise ``ModelError`` if its files
    cannot be used.
    """
    raw = raw_config(ref)
    types = types_in(raw) or target_types
    return HeadFolder(ref, all_tensor_files(ref), types, stated_in(ref, raw), is_apart)


def types_in(raw: Mapping[str, object]) -> frozenset[str]:
    """Return the model types that a config.json names: its own and that of its text side."""
    text = raw.get("text_config")
    nested = text.get("model_type") if isinstance(text, dict) else None
    return frozenset(name for name in (raw.get("model_type"), nested) if isinstance(name, str))


def find_family(folder: HeadFolder, config: PretrainedConfig, stated: str | None) -> HeadFamily:
    """Return the family of the head that ``folder`` holds, with the names that it has there.

    ``stated`` is the name of the family if it is known. Raise ``MissingHeadError`` with what was
    looked for. If names alone would be a guess, its message lists the families to choose from.
    """
    num_layers = config.num_hidden_layers
    candidates = [FAMILIES[stated]] if stated else [*FAMILIES.values()]
    places = [place for family in candidates for place in _places(family, folder)]
    found = [place for place in places if _holds(folder, place, num_layers, any)]
    if not found:
        looked_for = dict.fromkeys(place.own_names(num_layers)[0] for place in places)
        raise MissingHeadError(
            f"{folder.ref}: {_declared(config)}no MTP head tensors (looked for "
            f"{', '.join(looked_for)}). "
            "Give --head PATH, or --spec-tokens 0 to measure without speculation"
        )
    if stated:
        return found[0]
    return _by_type(folder, found) or _by_names(folder, found, num_layers)


def _places(family: HeadFamily, folder: HeadFolder) -> Iterator[HeadFamily]:
    """Yield ``family`` under its own names, and under each prefix of the checkpoint's layers.

    Heads made apart from a target have their own names alone.
    """
    yield family
    if family.model_types is not None:
        seen = family.names
        for prefix in folder.prefixes:
            moved = family.under(prefix)
            if moved.names != seen:
                yield moved


def _holds(
    folder: HeadFolder, family: HeadFamily, num_layers: int, how_many: Callable[..., bool]
) -> bool:
    """Return whether any, or all, of the tensors that only ``family`` has are in the folder.

    ``how_many`` is ``any`` or ``all``.
    """
    plain = plain_names(folder.files, family) if family.dropped else folder.files
    return how_many(name in plain for name in family.own_names(num_layers))


def plain_names(files: Mapping[str, Path], family: HeadFamily) -> dict[str, str]:
    """Return each tensor's name without the family's infix, with the name in the file."""
    infix = f".{family.dropped}" if family.dropped else "."
    return {name.replace(infix, "."): name for name in files}


def _by_type(folder: HeadFolder, found: list[HeadFamily]) -> HeadFamily | None:
    for family in found:
        if family.model_types is not None and family.model_types & folder.model_types:
            return family
    return next((family for family in found if family.model_types is None), None)


def _by_names(folder: HeadFolder, found: list[HeadFamily], num_layers: int) -> HeadFamily:
    whole = [family for family in found if _holds(folder, family, num_layers, all)]
    candidates = whole or found
    types = ", ".join(sorted(folder.model_types)) or "none"
    raise MissingHeadError(
        f"{folder.ref}: has {candidates[0].own_names(num_layers)[0]}, but no head family is known "
        f"for model type {types}. State one with --head-family: {differences(candidates)}"
    )


def _declared(config: PretrainedConfig) -> str:
    """Return what config.json declares of a head that is not there.

    Re-quantised checkpoints often declare one.
    """
    for field in _DECLARED:
        if number := getattr(config, field, None):
            return f"config.json declares {field} {number}, but the checkpoint ships "
    return ""
