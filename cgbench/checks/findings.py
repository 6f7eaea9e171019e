"""An audit's finding holds the answer of a check, its figures, and the first thing that was
wrong.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

from cgbench.parallel.ranks import Ranks, first_failure
from cgbench.words import Scope


class Answer(StrEnum):
    """An ``Answer`` states whether a check holds."""

    HOLDS = "holds"
    WRONG = "wrong"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Where:
    """A ``Where`` is the place of a difference. A field is None if the difference has no such
    place. ``row`` counts from 0. ``position`` is the index in the request's new tokens.
    """

    scope: Scope | None = None
    spec_tokens: int | None = None
    bucket: int | None = None
    batch_size: int | None = None
    row: int | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A ``Difference`` describes the first thing that was wrong.

    ``text`` describes it in a line. If tokens differ, ``expected`` and ``got`` are the two token
    ids. ``expected_logit`` and ``got_logit`` are their logits in the reference's forward.
    ``inputs`` is what ``--repro`` writes: device tensors by name, enough to run the failing step
    again.
    """

    text: str
    where: Where = field(default_factory=Where)
    expected: int | None = None
    got: int | None = None
    expected_logit: float | None = None
    got_logit: float | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """A ``Finding`` is the result of one check. ``figures`` are numbers and short texts, by name.
    ``reason`` explains why a check was not run.
    """

    check: str
    answer: Answer
    figures: Mapping[str, Any] = field(default_factory=dict)
    difference: Difference | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        assert (self.difference is not None) == (self.answer is Answer.WRONG)
        assert (self.reason is not None) == (self.answer is Answer.NOT_RUN)


def first_of(differences: Iterator[Difference], ranks: Ranks) -> Difference | None:
    """Return the first difference, and look no further. Return None if there is none.

    If several ``ranks`` share the model, each rank looks to the end. A rank that stopped at what it
    alone found would leave the others waiting in a sum.
    """
    first = next(differences, None)
    if ranks.size > 1:
        for _ in differences:
            pass
    return first


def holds(check: str, **figures: Any) -> Finding:
    """Return the finding of a check that found nothing wrong."""
    return Finding(check, Answer.HOLDS, figures)


def wrong(check: str, difference: Difference, **figures: Any) -> Finding:
    """Return the finding of a check that found something wrong."""
    return Finding(check, Answer.WRONG, figures, difference)


def over_ranks(finding: Finding) -> Finding:
    """Return ``finding``, or a wrong finding if it is wrong on another rank alone. That rank is
    named. All ranks must call this.
    """
    text = None if finding.difference is None else finding.difference.text
    failure = first_failure(text)
    if failure is None or finding.difference is not None:
        return finding
    return wrong(finding.check, Difference(failure), **finding.figures)


def not_run(check: str, reason: str, **figures: Any) -> Finding:
    """Return the finding of a check that was not run, because there was nothing to try it on."""
    return Finding(check, Answer.NOT_RUN, figures, reason=reason)
