"""Find which family's head a checkpoint holds, and under which names.

The tensor names, their shapes and the model type decide together.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from cgbench.errors import MissingHeadError
from cgbench.models.checkpoint import (
    StoredTensor,
    all_tensor_files,
    raw_config,
    stored_tensors,
)
from cgbench.models.heads.families import FAMILIES, HeadFamily
from cgbench.models.heads.head_wiring import differences, stated_in
from cgbench.request.parts import HeadWiring

# The beginning of a layer's name is the name of a checkpoint's model.
_LAYER = re.compile(r"((?:.*?\.)?)layers\.\d+\.")
# Types of weights that are not packed, so that their shape is the matrix's.
_NUMBERS = ("F32", "F16", "BF16", "F8_E4M3")
_DECLARED = (
    *("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "num_mtp_modules"),
    *("mtp_num_layers", "num_nextn_layers", "use_mtp"),
)


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
    # Heads that read states of layers are found by what they alone have.
    known = [family for family in FAMILIES.values() if not family.reads_aux]
    candidates = [FAMILIES[stated]] if stated else known
    places = [place for family in candidates for place in _places(family, folder)]
    found = [place for place in places if _holds(folder, place, num_layers, any)]
    if not found:
        looked_for = dict.fromkeys(place.own_names(num_layers)[0] for place in places)
        raise MissingHeadError(
            f"{folder.ref}: {_declared(config)}no MTP head tensors (looked for "
            f"{', '.join(looked_for)}). "
            "Give --head PATH, or --spec-tokens 0 to measure without speculation"
        )
    fitting = _fitting(folder, found, config)
    return fitting[0] if stated else _chosen(folder, fitting, num_layers)


def _fitting(
    folder: HeadFolder, found: list[HeadFamily], config: PretrainedConfig
) -> list[HeadFamily]:
    """Those of ``found`` whose projection reads two states of the target's hidden size.

    Raises ``MissingHeadError`` naming the projection if there is none. A projection that is not
    there, or is not of plain numbers, is looked at later.
    """
    size = config.hidden_size
    shapes = {family.name: _projection(folder, family, config) for family in found}
    unfit = {name: tensor for name, tensor in shapes.items() if tensor is not None}
    unfit = {name: each for name, each in unfit.items() if each.shape != (size, 2 * size)}
    fitting = [family for family in found if family.name not in unfit]
    if not fitting:
        tensor = next(iter(unfit.values()))
        raise MissingHeadError(
            f"{folder.ref}: {tensor.name} is {tensor.shape}, not {(size, 2 * size)} as the "
            f"projection of {' or '.join(unfit)}: the head is of another kind, or of another target"
        )
    return fitting


def _projection(
    folder: HeadFolder, family: HeadFamily, config: PretrainedConfig
) -> StoredTensor | None:
    """The header of the first module's projection, None if there is none of plain numbers."""
    name = family.own_names(config.num_hidden_layers)[0]
    stored = plain_names(folder.files, family).get(name)
    if stored is None:
        return None
    header = stored_tensors({stored: folder.files[stored]})[stored]
    return header if header.dtype in _NUMBERS else None


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


def _chosen(folder: HeadFolder, found: list[HeadFamily], num_layers: int) -> HeadFamily:
    """The one family that type and names agree on. A family that is made apart from any target has
    no type, and is chosen by its names as they are.

    Raises ``MissingHeadError`` listing the families to choose from.
    """
    whole = [family for family in found if _holds(folder, family, num_layers, all)]
    typed = [f for f in found if f.model_types is not None and f.model_types & folder.model_types]
    if typed and (typed[0] in whole or not whole):
        # What of its names is missing is said of this family.
        return typed[0]
    candidates = whole or found
    as_named = [family for family in candidates if family is FAMILIES[family.name]]
    if not typed and len(as_named) == 1 and as_named[0].model_types is None:
        return as_named[0]
    types = ", ".join(sorted(folder.model_types)) or "none"
    names = candidates[0].own_names(num_layers)
    name, known = names[0], f"but no head family is known for model type {types}"
    if typed:
        lacking = set(names) - set(typed[0].own_names(num_layers))
        name = min(lacking, default=name)
        known = f"but heads of model type {types} are of family {typed[0].name}"
    listed = list({family.name: family for family in [*typed, *candidates]}.values())
    raise MissingHeadError(
        f"{folder.ref}: has {name}, {known}. State one with --head-family: {differences(listed)}"
    )


def _declared(config: PretrainedConfig) -> str:
    """Return what config.json declares of a head that is not there.

    Re-quantised checkpoints often declare one.
    """
    for field in _DECLARED:
        if number := getattr(config, field, None):
            said = "true" if number is True else number
            return f"config.json declares {field} {said}, but the checkpoint ships "
    return ""
