"""Hold mean acceptance lengths that are stated, not measured: for every k, or from a table.

No torch is imported here. Readers of a run directory use this file to distinguish a stated length
from a measured one.
"""

from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Protocol

from cgbench.errors import BadInputError

BORROWED = " (borrowed)"
"""This text follows a golden length's name if it was measured on another model."""


class Length(Protocol):
    """A ``Length`` gives a mean acceptance length for each k.

    ``str`` is what ``--acceptance`` reads.
    """

    def at(self, spec_tokens: int) -> float | None:
        """Return the length at k drafts, 1 to k + 1, or None if there is none for this k."""
        ...


@dataclass(frozen=True, slots=True)
class Golden:
    """A ``Golden`` is a row of the golden table: what one model's own drafter reached at each k.

    ``lengths`` begins at k = 1.
    """

    name: str
    model: str
    lengths: tuple[float, ...]

    def at(self, spec_tokens: int) -> float | None:
        """Return the row's length at k drafts, or None beyond the end of the row."""
        return self.lengths[spec_tokens - 1] if spec_tokens <= len(self.lengths) else None


GOLDEN: dict[str, Golden] = {
    row.name: row
    for row in (
        Golden(
            "deepseek-v4-on",
            "DeepSeek-V4, thinking on",
            (1.79, 2.27, 2.49, 2.54, 2.55, 2.55, 2.54, 2.58),
        ),
        Golden(
            "deepseek-v4-off",
            "DeepSeek-V4, thinking off",
            (1.92, 2.61, 2.97, 3.00, 3.10, 3.16, 3.00, 3.11),
        ),
        Golden(
            "glm-5.2-on",
            "GLM-5.2, thinking on",
            (1.84, 2.50, 2.99, 3.33, 3.61, 3.78, 3.91, 4.06),
        ),
        Golden(
            "qwen3.5-397b-on",
            "Qwen3.5-397B, thinking on",
            (1.93, 2.73, 3.39, 3.97, 4.41, 4.80, 5.04, 5.21),
        ),
        Golden(
            "qwen3.5-397b-off",
            "Qwen3.5-397B, thinking off",
            (1.92, 2.70, 3.33, 3.83, 4.20, 4.48, 4.73, 4.71),
        ),
    )
}
"""These are the golden acceptance lengths of InferenceX (Apache-2.0). Each model has its own MTP
drafter, and the prompts are SPEED-Bench's for coding. There is one run for each k from 1 to 8.
Serving engines pin synthetic acceptance to them, so that their throughputs can be compared."""


@dataclass(frozen=True, slots=True)
class StatedLength:
    """A ``StatedLength`` is one mean acceptance length, which holds at every k."""

    value: float

    def at(self, spec_tokens: int) -> float:
        return self.value

    def __str__(self) -> str:
        return f"length:{self.value:.10g}"


@dataclass(frozen=True, slots=True)
class GoldenLength:
    """A ``GoldenLength`` gives a golden row's length at each k.

    ``is_borrowed`` marks a row of another model than the one measured with it.
    """

    row: Golden
    is_borrowed: bool = False

    def at(self, spec_tokens: int) -> float | None:
        return self.row.at(spec_tokens)

    def __str__(self) -> str:
        return f"golden:{self.row.name}{BORROWED if self.is_borrowed else ''}"


def parse_length(text: str) -> Length | None:
    """Return the length that ``length:2.5`` or ``golden:glm-5.2-on`` states.

    It is None for another rule. Raise ``BadInputError`` naming the flag.
    """
    kind, _, value = text.partition(":")
    match kind:
        case "length":
            return _stated(text, value)
        case "golden":
            return _golden(text, value)
    return None


def stated_length(acceptance: str, spec_tokens: int) -> float | None:
    """Return the mean acceptance length that a row's rule states, or None if it is measured."""
    length = parse_length(acceptance) if spec_tokens else None
    return length.at(spec_tokens) if length else None


def checked_length(text: str, length: Length, spec_tokens: int) -> float:
    """Return the length at k.

    Raise ``BadInputError`` if k drafts cannot reach it, or there is none.
    """
    found = length.at(spec_tokens)
    if found is None:
        raise BadInputError(f"--acceptance {text}: has no row for --spec-tokens {spec_tokens}")
    if not 1 <= found <= spec_tokens + 1:
        raise BadInputError(
            f"--acceptance {text}: --spec-tokens {spec_tokens} reaches lengths of 1 to "
            f"{spec_tokens + 1}"
        )
    return found


@cache
def conditional_rate(length: float, spec_tokens: int) -> float:
    """Return the rate p of each draft that gives a mean acceptance length of ``length``.

    It is the rate at which a draft must be kept, given that the one before it was kept. So p is the
    root of 1 + p + .. + p^k = length in [0, 1].
    """
    # Its import takes a tenth of a second, and only this function needs it.
    from scipy.optimize import brentq

    def too_long(rate: float) -> float:
        return sum(rate**kept for kept in range(spec_tokens + 1)) - length

    return float(brentq(too_long, 0.0, 1.0, xtol=1e-15))


def _stated(text: str, value: str) -> StatedLength:
    try:
        length = float(value)
    except ValueError:
        length = 0.0
    if not (isfinite(length) and length >= 1):
        raise BadInputError(f"--acceptance {text}: the length must be a number of at least 1")
    return StatedLength(length)


def _golden(text: str, value: str) -> GoldenLength:
    name = value.removesuffix(BORROWED)
    if name not in GOLDEN:
        raise BadInputError(
            f"--acceptance {text}: unknown. Choose golden: and one of {', '.join(GOLDEN)}"
        )
    return GoldenLength(GOLDEN[name], is_borrowed=name != value)
