"""What is stated about a head over what its family does: by flags, or by its own config.json.

A checkpoint may state its head's wiring under ``cgbench_head`` in config.json, for example
``{"family": "mimo", "hidden_in": "pre"}``. The shipped default model does, because it was trained
with another wiring than MiMo's engines use. A flag goes before the file, the file before the
family.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from cgbench.errors import BadInputError, ModelError
from cgbench.models.heads.families import (
    FAMILIES,
    Concat,
    FirstEmbed,
    HeadFamily,
    HiddenForm,
    NormForm,
    OutNorm,
)

CONFIG_FIELD = "cgbench_head"
"""The field of config.json that states a head's family and wiring."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "family": tuple(FAMILIES),
    "concat": get_args(Concat),
    "hidden_in": get_args(HiddenForm),
    "chain": get_args(HiddenForm),
    "out_norm": get_args(OutNorm),
    "norm_form": get_args(NormForm),
    "first_embed": get_args(FirstEmbed),
}
WIRING = tuple(name for name in _CHOICES if name != "family")
"""The fields of ``HeadFamily`` that can be stated."""


@dataclass(frozen=True, slots=True)
class HeadOverrides:
    """What is stated about a head over what its family does; None leaves it.

    ``family`` is a name in ``FAMILIES``. Raises ``BadInputError`` for any other.
    """

    family: str | None = None
    concat: Concat | None = None
    hidden_in: HiddenForm | None = None
    chain: HiddenForm | None = None
    out_norm: OutNorm | None = None
    norm_form: NormForm | None = None
    first_embed: FirstEmbed | None = None

    def __post_init__(self) -> None:
        if self.family is not None and self.family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise BadInputError(f"--head-family {self.family}: choose one of {known}")

    @property
    def wiring(self) -> dict[str, str]:
        """The overridden wiring, without the family."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v for name, v in values.items() if v is not None and name != "family"}

    def wired(self, family: HeadFamily) -> HeadFamily:
        """``family`` with the stated wiring, under its own name.

        Raises ``BadInputError`` for an output norm that the family's heads do not have.
        """
        if self.out_norm == "own" and "out_norm" not in family.names:
            raise BadInputError(
                f"--head-out-norm own: heads of family {family.name} have no output norm"
            )
        return replace(family, **self.wiring)  # type: ignore[arg-type]

    def apply(self, family: HeadFamily) -> HeadFamily:
        """``family`` with the stated wiring, which its name shows, so that no two are confused."""
        if not self.wiring:
            return family
        stated = ",".join(f"{name}={value}" for name, value in self.wiring.items())
        return replace(self.wired(family), name=f"{family.name}[{stated}]")


def stated_in(ref: str, config: Mapping[str, Any]) -> HeadOverrides:
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
        if value not in _CHOICES[name]:
            choices = ", ".join(_CHOICES[name])
            raise ModelError(f"{where}: {name} must be one of {choices}, not {value!r}")
    return HeadOverrides(**stated)


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
    return "; ".join(
        f"{name} ({', '.join(f'{point} {wiring[point]}' for point in shown)})"
        for name, wiring in wirings.items()
    )
