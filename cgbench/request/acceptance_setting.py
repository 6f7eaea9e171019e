"""Hold ``--acceptance`` as a value. ``engine.acceptance`` turns it into the rule.

No torch here, so that a request can be checked and recorded without it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from cgbench.errors import BadInputError
from cgbench.inputs import MAX_WHOLE
from cgbench.request.acceptance_lengths import Length, checked_length, parse_length
from cgbench.request.choices import AcceptanceKind, Drafts

MIN_TEMPERATURE = 1e-6
"""A lower temperature is refused, because float32 logits divided by it may overflow."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """A ``Sampling`` holds the settings of sampled acceptance.

    Fields are named as in ``--acceptance``.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    drafts: Drafts = Drafts.SAMPLED

    def __str__(self) -> str:
        changed = [
            f"{_setting_name(each.name)}={_number(getattr(self, each.name))}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return f"sampled:{','.join(changed)}" if changed else "sampled"


@dataclass(frozen=True, slots=True)
class AcceptanceSetting:
    """An ``AcceptanceSetting`` states how many drafts are kept: the value of ``--acceptance``.

    ``str`` is what the flag reads, with one spelling for equal settings. ``sampling`` belongs to
    the kind sampled. ``rates`` belong to synthetic: ``rates[j]`` is the unconditional rate of draft
    j + 1. ``length`` belongs to length and golden.
    """

    kind: AcceptanceKind
    sampling: Sampling = field(default_factory=Sampling)
    rates: tuple[float, ...] = ()
    length: Length | None = None

    @property
    def is_greedy(self) -> bool:
        """Check that the setting is ``greedy``."""
        return self.kind is AcceptanceKind.GREEDY

    @property
    def is_assumed(self) -> bool:
        """Return whether drafts are kept at stated rates, whatever they are."""
        return self.kind not in (AcceptanceKind.GREEDY, AcceptanceKind.SAMPLED)

    @classmethod
    def parse(cls, text: str, spec_tokens: Sequence[int]) -> "AcceptanceSetting":
        """Return the setting that ``--acceptance`` states.

        The forms are ``greedy``, ``sampled``, and ``sampled:temperature=0.8,top-p=0.95`` with
        settings. ``length:2.5`` and ``golden:glm-5.2-on`` give a mean acceptance length for each k.
        ``synthetic:0.8,0.6,0.4`` has a rate for each draft of the largest k. Raise
        ``BadInputError`` naming the flag.
        """
        name, colon, rest = text.partition(":")
        if text == "greedy":
            return cls(AcceptanceKind.GREEDY)
        if name == "sampled":
            sampling = _sampling(text, rest) if colon else Sampling()
            return cls(AcceptanceKind.SAMPLED, sampling=sampling)
        if name == "synthetic":
            rates = _rates(text, rest)
            _check_rates(text, rates, max(spec_tokens))
            return cls(AcceptanceKind.SYNTHETIC, rates=rates)
        if length := parse_length(text):
            # k = 0 is there for comparison, and drafts nothing.
            for k in filter(None, sorted(spec_tokens)):
                checked_length(text, length, k)
            return cls(AcceptanceKind(name), length=length)
        raise BadInputError(
            f"--acceptance {text}: choose greedy, sampled, sampled:SETTING=VALUE,..., length:L, "
            "golden:NAME or synthetic:RATE,RATE,..."
        )

    def __str__(self) -> str:
        match self.kind:
            case AcceptanceKind.SAMPLED:
                return str(self.sampling)
            case AcceptanceKind.SYNTHETIC:
                return f"synthetic:{','.join(map(_number, self.rates))}"
            case AcceptanceKind.LENGTH | AcceptanceKind.GOLDEN:
                return str(self.length)
        return "greedy"


def _setting_name(name: str) -> str:
    """Return a field of ``Sampling`` as ``--acceptance`` spells it."""
    return name.replace("_", "-")


def _number(value: object) -> str:
    """Return a number as text, 1 and 1.0 alike."""
    return str(value).removesuffix(".0")


def _rates(text: str, rest: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in rest.split(","))
    except ValueError as error:
        raise BadInputError(
            f"--acceptance {text}: must be rates separated by commas, such as synthetic:0.8,0.6"
        ) from error


def _check_rates(text: str, rates: tuple[float, ...], spec_tokens: int) -> None:
    if not all(0 <= rate <= 1 for rate in rates):
        raise BadInputError(f"--acceptance {text}: every rate must be between 0 and 1")
    if list(rates) != sorted(rates, reverse=True):
        raise BadInputError(
            f"--acceptance {text}: rates are unconditional, so they cannot rise with the position"
        )
    if len(rates) < spec_tokens:
        raise BadInputError(
            f"--acceptance {text}: {len(rates)} rates for {spec_tokens} drafts (--spec-tokens)"
        )


def _sampling(text: str, rest: str) -> Sampling:
    """Return the settings of a text such as ``temperature=0.8,top-p=0.95``."""
    names = {_setting_name(each.name): each.name for each in fields(Sampling)}
    found, given = Sampling(), set[str]()
    for part in rest.split(","):
        name, _, value = part.strip().partition("=")
        if name not in names:
            raise BadInputError(
                f"--acceptance {text}: unknown setting '{name}'. Choose {', '.join(names)}"
            )
        if name in given:
            raise BadInputError(f"--acceptance {text}: {name} is given twice")
        given.add(name)
        found = replace(found, **{names[name]: _value(text, name, value)})
    return found


def _value(text: str, name: str, value: str) -> Any:
    read, wanted = _READERS[name]
    try:
        return read(value)
    except ValueError as error:
        raise BadInputError(f"--acceptance {text}: {name} must be {wanted}") from error


def _checked(is_good: bool) -> None:
    if not is_good:
        raise ValueError


def _temperature(value: str) -> float:
    temperature = float(value)
    _checked(MIN_TEMPERATURE <= temperature < math.inf)
    return temperature


def _top_k(value: str) -> int:
    top_k = int(value)
    _checked(1 <= top_k <= MAX_WHOLE)
    return top_k


def _top_p(value: str) -> float:
    top_p = float(value)
    _checked(0 < top_p <= 1)
    return top_p


_READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "temperature": (
        _temperature,
        f"a finite number of at least {MIN_TEMPERATURE:g}, for temperature 0 choose greedy",
    ),
    "top-k": (_top_k, f"a whole number from 1 to {MAX_WHOLE:,}"),
    "top-p": (_top_p, "above 0 and at most 1"),
    "drafts": (Drafts, "sampled or greedy"),
}
