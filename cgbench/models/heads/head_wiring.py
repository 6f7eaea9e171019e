"""Apply the wiring of a head that flags or the head's own config.json state.

A checkpoint may state its head's wiring under ``cgbench_head`` in config.json, for example
``{"family": "mimo", "hidden_in": "pre"}``. The shipped default model does, because it was trained
with another wiring than MiMo's engines use. A flag goes before the file, and the file before the
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
"""This field of config.json states a head's family and wiring."""

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
"""These are the fields of ``HeadFamily`` that can be stated."""


_FLAGS = {
    "chain": "--chain-norm",
    "concat": "--head-concat",
    "feed": "--head-feed",
    "first_embed": "--head-first-embed",
    "hidden_in": "--head-hidden",
    "norm_form": "--head-norm-form",
    "out_norm": "--head-out-norm",
}
# What the wiring of an EAGLE-3 head leaves no choice of.
_NOT_OF_EAGLE3 = _FLAGS.keys() - {"chain", "first_embed"}


def check_family(wiring: HeadWiring) -> None:
    """Raise ``BadInputError`` if the stated family is not in ``FAMILIES``."""
    if wiring.family is not None and wiring.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BadInputError(f"--head-family {wiring.family}: choose one of {known}")


def stated_points(wiring: HeadWiring) -> dict[str, str]:
    """Return the points of a wiring that are stated, without the family."""
    values = {name: getattr(wiring, name) for name in WIRING}
    return {name: value for name, value in values.items() if value is not None}


def wired(family: HeadFamily, wiring: HeadWiring) -> HeadFamily:
    """Return ``family`` with the stated wiring, under its own name.

    Raise ``BadInputError`` for an output norm that the family's heads do not have, and for points
    that an EAGLE-3 head or a parallel drafter does not have.
    """
    if wiring.out_norm == OutputNorm.OWN and "out_norm" not in family.names:
        raise BadInputError(
            f"--head-out-norm own: heads of family {family.name} have no output norm"
        )
    points = stated_points(wiring)
    if not points:
        return family
    if family.is_parallel:
        raise BadInputError(
            f"{_FLAGS[min(points)]}: a {family.kind} has no {min(points)} to state: its wiring is "
            "fixed"
        )
    if family.num_aux and (fixed := sorted(points.keys() & _NOT_OF_EAGLE3)):
        flag = _FLAGS[fixed[0]]
        raise BadInputError(
            f"{flag}: an {family.kind} has no {fixed[0]} to state, only --chain-norm and "
            "--head-first-embed"
        )
    source = f"what is stated of {', '.join(points)}, else {family.source}"
    return replace(family, source=source, **points)  # type: ignore[arg-type]


def named(family: HeadFamily, wiring: HeadWiring) -> HeadFamily:
    """Return ``family`` with the stated wiring, and a name that shows it.

    So no two wirings are confused.
    """
    points = stated_points(wiring)
    if not points:
        return family
    stated = ",".join(f"{name}={value}" for name, value in points.items())
    return replace(wired(family, wiring), name=f"{family.name}[{stated}]")


def stated_in(ref: str, config: Mapping[str, Any]) -> HeadWiring:
    """Return the wiring that a head's own config.json, read as ``config``, states.

    Raise ``ModelError`` with the field and what it must be.
    """
    stated = config.get(CONFIG_FIELD, {})
    where = f"{ref}: config.json: {CONFIG_FIELD}"
    if not isinstance(stated, dict):
        raise ModelError(f"{where} must be an object with the fields {', '.join(_CHOICES)}")
    for name, value in stated.items():
        if name not in _CHOICES:
            raise ModelError(f"{where} has '{name}'. Its fields are {', '.join(_CHOICES)}")
        if not isinstance(value, str) or value not in _CHOICES[name]:
            choices = ", ".join(_CHOICES[name])
            raise ModelError(f"{where}: {name} must be one of {choices}, not {value!r}")
    words: dict[str, Any] = {name: _CHOICES[name][word] for name, word in stated.items()}
    return HeadWiring(**words)


def wiring_of(family: HeadFamily) -> dict[str, str]:
    """Return every disputed point of a head with its value, as the record keeps it.

    An EAGLE-3 head is fed the states of layers, so its ``hidden_in`` is ``aux``. A parallel drafter
    has no other point, and its ``drafts`` are ``parallel``.
    """
    if family.is_parallel:
        return {"hidden_in": "aux", "drafts": "parallel"}
    wiring = {name: str(getattr(family, name)) for name in WIRING}
    return wiring | ({"hidden_in": "aux"} if family.num_aux else {})


def differences(candidates: list[HeadFamily]) -> str:
    """Return in words how ``candidates`` differ, for a user who must choose one.

    For a single candidate it is all of its wiring.
    """
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
