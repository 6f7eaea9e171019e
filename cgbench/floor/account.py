"""An account lists what a floor is made of, as ``run.json`` keeps it. No torch, no pandas."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypedDict

from cgbench.words import Scope, Stage, StageKind


class LineFacts(TypedDict):
    """Line facts are a ``FloorLine`` in ``run.json``."""

    stage: str
    what: str
    count: int
    num_bytes: float
    flops: float
    bound_by: str
    seconds: float
    experts_read: float | None
    experts_expected: float | None


class AccountFacts(TypedDict):
    """Account facts are an ``Account`` in ``run.json``."""

    scope: str
    spec_tokens: int
    batch_size: int
    context_len: float
    lines: list[LineFacts]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorLine:
    """A floor line is one line of a floor's account.

    It stands for ``count`` operations of one kind in one stage, such as products or attentions.
    ``seconds`` is the larger of two times: its bytes, and its operations, over the device's
    measured rates. ``bound_by`` names the larger one, bytes or operations.

    For a mixture ``experts_read`` is the mean distinct experts a layer that were counted, or None
    if none were. ``experts_expected`` is the number that uniform choice would read.
    """

    stage: Stage
    what: str
    count: int
    num_bytes: float
    flops: float
    bound_by: str
    seconds: float
    experts_read: float | None = None
    experts_expected: float | None = None

    def to_dict(self) -> LineFacts:
        """Return the line as ``run.json`` keeps it."""
        return LineFacts(
            stage=str(self.stage),
            what=self.what,
            count=self.count,
            num_bytes=self.num_bytes,
            flops=self.flops,
            bound_by=self.bound_by,
            seconds=self.seconds,
            experts_read=self.experts_read,
            experts_expected=self.experts_expected,
        )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Return a line from what ``run.json`` keeps.

        Raise ``TypeError``, ``KeyError`` or ``ValueError`` if it is none.
        """
        return cls(**{**raw, "stage": Stage.parse(str(raw["stage"]))})

    def plus(self, other: Self) -> Self:
        """Return one line for both, as for another step of the same work.

        Counts, bytes, operations and seconds add up. Experts are averaged. The line with more
        seconds decides ``bound_by``.
        """
        larger = self if self.seconds >= other.seconds else other
        return type(self)(
            stage=self.stage,
            what=self.what,
            count=self.count + other.count,
            num_bytes=self.num_bytes + other.num_bytes,
            flops=self.flops + other.flops,
            bound_by=larger.bound_by,
            seconds=self.seconds + other.seconds,
            experts_read=self._mean(other, self.experts_read, other.experts_read),
            experts_expected=self._mean(other, self.experts_expected, other.experts_expected),
        )

    def _mean(self, other: Self, ours: float | None, its: float | None) -> float | None:
        if ours is None or its is None:
            return None
        return (self.count * ours + other.count * its) / (self.count + other.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account lists what the floor of one k and batch size is made of.

    ``context_len`` is the mean of the timed iterations of ``scope``, whose stages stand beside the
    lines.
    """

    scope: Scope
    spec_tokens: int
    batch_size: int
    context_len: float
    lines: tuple[FloorLine, ...]

    def to_dict(self) -> AccountFacts:
        """Return the account as ``run.json`` keeps it."""
        return AccountFacts(
            scope=self.scope.value,
            spec_tokens=self.spec_tokens,
            batch_size=self.batch_size,
            context_len=self.context_len,
            lines=[line.to_dict() for line in self.lines],
        )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Return an account from what ``run.json`` keeps.

        Raise ``TypeError``, ``KeyError`` or ``ValueError`` if it is none.
        """
        lines = tuple(FloorLine.from_dict(line) for line in raw["lines"])
        return cls(**{**raw, "scope": Scope(raw["scope"]), "lines": lines})


def account_stage(stage: Stage, spec_tokens: int) -> Stage:
    """Return the stage of an account that holds a stage of the samples.

    Drafts 2..k are one stage in an account.
    """
    if stage.kind is not StageKind.DRAFT or stage.first in (None, 1):
        return stage
    return Stage.draft(2, spec_tokens)
