"""Mean acceptance lengths that are stated, not measured: one for every k, or a published table's.

Written without torch: what reads a run directory tells a stated length from a measured one by it.
"""

from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Protocol

from cgbench.errors import BadInputError

BORROWED = " (borrowed)"
"""What follows a golden length's name where the model it was measured on is another."""


class Length(Protocol):
    """A mean acceptance length by k. ``str`` is what ``--acceptance`` reads."""

    def at(self, spec_tokens: int) -> float | None:
        """The length at k drafts, 1 to k + 1. None: there is none for this k."""
        ...


@dataclass(frozen=True, slots=True)
class Golden:
    """A row of the golden table: what one model's own drafter reached at k = 1, 2, .."""

    name: str
    model: str
    lengths: tuple[float, ...]

    def at(self, spec_tokens: int) -> float | None:
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
"""Golden acceptance lengths of InferenceX (Apache-2.0): each model with its own MTP drafter, on the
coding prompts of SPEED-Bench, one run for each k from 1 to 8. Serving engines pin synthetic
acceptance to them, so that their throughputs can be compared."""


@dataclass(frozen=True, slots=True)
class StatedLength:
    """The same length at every k."""

    value: float

    def at(self, spec_tokens: int) -> float:
        return self.value

    def __str__(self) -> str:
        return f"length:{self.value:.10g}"


@dataclass(frozen=True, slots=True)
class GoldenLength:
    """A golden row's length at each k; ``is_borrowed`` where another model is measured with it."""

    row: Golden
    is_borrowed: bool = False

    def at(self, spec_tokens: int) -> float | None:
        return self.row.at(spec_tokens)

    def __str__(self) -> str:
        return f"golden:{self.row.name}{BORROWED if self.is_borrowed else ''}"


def parse_length(text: str) -> Length | None:
    """``length:2.5`` or ``golden:glm-5.2-on``; None where ``text`` is another rule.

    Raises ``BadInputError`` naming the flag.
    """
    kind, _, value = text.partition(":")
    match kind:
        case "length":
            return _stated(text, value)
        case "golden":
            return _golden(text, value)
    return None


def stated_length(acceptance: str, spec_tokens: int) -> float | None:
    """The mean acceptance length that the rule of a row states; None where it is measured."""
    length = parse_length(acceptance) if spec_tokens else None
    return length.at(spec_tokens) if length else None


def checked_length(text: str, length: Length, spec_tokens: int) -> float:
    """The length at k. Raises ``BadInputError`` where k drafts cannot reach it, or it has none."""
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
    """Return the rate p at which each draft must be kept, given that the one before it was kept,
    for a mean acceptance length of ``length``. It is the root of 1 + p + .. + p^k = length in [0,
    1].
    """
    # It takes a tenth of a second to import, which only this needs.
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
            f"--acceptance {text}: unknown; choose golden: and one of {', '.join(GOLDEN)}"
        )
    return GoldenLength(GOLDEN[name], is_borrowed=name != value)
