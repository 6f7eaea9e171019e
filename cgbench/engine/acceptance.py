"""Acceptance rules: how many drafts verify keeps, and what it emits after them.

A rule works on the device and can be captured. Its randomness comes from ``RowState.uniforms``,
which every iteration fills anew and which is indexed by request: a request's draws depend neither
on its row, nor on its bucket, nor on the scope.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cgbench.engine.state import RowState
from cgbench.errors import BadInputError


class AcceptanceRule(Protocol):
    """Decides an iteration from the drafts, the target's logits, and perhaps random draws."""

    @property
    def is_random(self) -> bool:
        """Whether ``uniforms`` must be filled before each call."""
        ...

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        """The target's ``logits [b, k + 1, V]`` and ``rows.drafts`` decide, in place,
        ``rows.num_accepted`` in 0..k and ``rows.out``: out[j] = draft j + 1 for
        j < num_accepted, then the bonus or recovered token, then any valid id."""
        ...


@dataclass(frozen=True, slots=True)
class Greedy:
    """Keep the leading drafts that equal the target's argmax; the argmax follows them.

    Lossless: the tokens emitted are those of plain greedy decoding.
    """

    is_random = False

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        rows.out.copy_(logits.argmax(-1))
        agrees = rows.drafts == rows.out[:, :-1]
        rows.num_accepted.copy_(agrees.cumprod(-1).sum(-1))


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Keep drafts at given rates, drawn per request and per position, whatever they say.

    ``rates[j]`` is the unconditional rate of draft j + 1. The logits are computed and read as
    under ``Greedy``, so that an iteration costs the same; the text means nothing.
    """

    rates: tuple[float, ...]

    is_random = True

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        rows.out.copy_(logits.argmax(-1))
        k = rows.spec_tokens
        if not k:
            rows.num_accepted.zero_()
            return
        draws = rows.uniforms[rows.slot_of_row, :k]
        kept = torch.stack([draws[:, j] < rate for j, rate in enumerate(self._conditional(k))], 1)
        num_accepted = kept.cumprod(1).sum(1)
        rows.num_accepted.copy_(num_accepted)
        is_draft = rows.offsets[:k] < num_accepted[:, None]
        rows.out[:, :k] = torch.where(is_draft, rows.drafts, rows.out[:, :k])

    def _conditional(self, k: int) -> list[float]:
        """Each draft's rate given that the one before it was kept."""
        before = (1.0, *self.rates)
        return [
            rate / last if last else 0.0 for last, rate in zip(before, self.rates[:k], strict=False)
        ]


def parse_acceptance(text: str, spec_tokens: Sequence[int]) -> AcceptanceRule:
    """``greedy``, or ``synthetic:0.8,0.6,0.4`` with a rate for each draft of the largest k.

    Raises ``BadInputError`` naming the flag.
    """
    name, _, rest = text.partition(":")
    if text == "greedy":
        return Greedy()
    if name != "synthetic":
        raise BadInputError(f"--acceptance {text}: choose greedy or synthetic:RATE,RATE,...")
    try:
        rates = tuple(float(part) for part in rest.split(","))
    except ValueError as error:
        raise BadInputError(
            f"--acceptance {text}: must be rates separated by commas, such as synthetic:0.8,0.6"
        ) from error
    _check_rates(text, rates, max(spec_tokens))
    return Synthetic(rates)


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
