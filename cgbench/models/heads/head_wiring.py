"""Apply what flags, or a head's own config.json, state over what its family does.

A checkpoint may state its head's wiring under ``cgbench_head`` in config.json, for example
``{"family": "mimo", "hidden_in": "pre"}``. The shipped default model does, because it was trained
with another wiring than MiMo's engines use. A flag goes before the file, the file before the
family.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cgbench.errors import BadInputError, ModelError
from cgbench.models.heads.families import FAMILIES, HeadFamily
from cgbench.request.choices import (
    ConcatOrder,
    FirstEmbedding,
    ModuleFeed,
    NormForm,
    NormSide,
    OutputNorm,
)
from cgbench.request.parts import HeadWiring

CONFIG_FIELD = "cgbench_head"
"""The field of config.json that states a head's family and wiring."""

_CHOICES: dict[str, Mapping[str, str]] = {
    "family": {name: name for name in FAMILIES},
    "concat": {word.value: word for word in ConcatOrder},
    "hidden_in": {word.value: word for word in NormSide},
    "chain": {word.value: word for word in NormSide},
    "out_norm": {word.value: word for word in OutputNorm},
    "norm_form": {word.value: word for word in NormForm},
    "first_embed": {word.value: word for word in FirstEmbedding},
    "feed": {word.value: word for word in ModuleFeed},
}
WIRING = tuple(name for name in _CHOICES if name != "family")
"""The fields of ``HeadFamily`` that can be stated."""


def check_family(wiring: HeadWiring) -> None:
    """Raises ``BadInputError`` for a family that is not in ``FAMILIES``."""
    if wiring.family is not None and wiring.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BadInputError(f"--head-family {wiring.family}: choose one of {known}")


def stated_points(wiring: HeadWiring) -> dict[str, str]:
    """The points that are stated, without the family."""
    values = {name: getattr(wiring, name) for name in WIRING}
    return {name: value for name, value in values.items() if value is not None}


def wired(family: HeadFamily, wiring: HeadWiring) -> HeadFamily:
    """``family`` with the stated wiring, under its own name.

    Raises ``BadInputError`` for an output norm that the family's heads do not have.
    """
    if wiring.out_norm == OutputNorm.OWN and "out_norm" not in family.names:
        raise BadInputError(
            f"--head-out-norm own: heads of family {family.name} have no output norm"
        )
    points = stated_points(wiring)
    if not points:
        return family
    source = f"what is stated of {', '.join(points)}, else {family.source}"
    return replace(family, source=source, **points)  # type: ignore[arg-type]


def named(family: HeadFamily, wiring: HeadWiring) -> HeadFamily:
    """``family`` with the stated wiring, which its name shows, so that no two are confused."""
    points = stated_points(wiring)
    if not points:
        return family
    stated = ",".join(f"{name}={value}" for name, value in points.items())
    return replace(wired(family, wiring), name=f"{family.name}[{stated}]")


def stated_in(ref: str, config: Mapping[str, Any]) -> HeadWiring:
    """What a head's own config.json, read as ``config``, states.

    Raises ``ModelError`` naming the field and what it must be.
    """
    stated = config.get(CONFIG_FIELD, {})
    where = f"{ref}: config.json: {CONFIG_FIELD}"
    if not isinstance(stated, dict):
        raise ModelError(f"{where} must be an object with the fields {', '.join(_CHOICES)}")
    for name, value in stated.items():
        if name not in _CHOICES:
            raise ModelError(f"{where} has '{name}'; its fields are {', '.join(_CHOICES)}")
        if not isinstance(value, str) or value not in _CHOICES[name]:
            choices = ", ".join(_CHOICES[name])
            raise ModelError(f"{where}: {name} must be one of {choices}, not {value!r}")
    words: dict[str, Any] = {name: _CHOICES[name][word] for name, word in stated.items()}
    return HeadWiring(**words)


def wiring_of(family: HeadFamily) -> dict[str, str]:
    """Every disputed point of a head and what it is, as the record keeps it."""
    return {name: getattr(family, name) for name in WIRING}


def differences(candidates: list[HeadFamily]) -> str:
    """What a user needs to know to choose one of ``candidates``: where they differ, or for one
    alone all of its wiring."""
    wirings = {family.name: wiring_of(family) for family in candidates}
    shown = [
        name
        for name in WIRING
        if len(wirings) == 1 or len({wiring[name] for wiring in wirings.values()}) > 1
    ]
    points = {
        name: ", ".join(f"{point} {wiring[point]}" for point in shown)
        for name, wiring in wirings.items()
    }
    return "; ".join(f"{name} ({said})" if said else name for name, said in points.items())
