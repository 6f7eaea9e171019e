"""Define the words that every part of cgbench uses, such as scopes, stages and verdicts.

This module imports the standard library alone.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Scope(StrEnum):
    """A scope is what was asked for: no graphs, a graph for each phase, or one for the whole
    iteration."""

    EAGER = "eager"
    PHASE = "phase"
    ITERATION = "iteration"


class Mode(StrEnum):
    """A mode is what really ran. A scope runs eager if the batch is above its largest bucket."""

    GRAPH = "graph"
    EAGER = "eager"


class Status(StrEnum):
    """A status records whether a cell's numbers can be trusted, and the reason if they cannot."""

    OK = "ok"
    AUDIT_FAILED = "audit_failed"
    OOM = "oom"
    DISTURBED = "disturbed"
    FLOOR_BEATEN = "floor_beaten"
    """The cell was faster than its floor by more than the uncertainty of both, so the floor is
    wrong."""


class Verdict(StrEnum):
    """A verdict is the answer of a comparison about one quantity.

    ``faster`` and ``improved`` are one answer, for times and for the rest. ``changed`` is a fact
    that differs and is neither good nor bad.
    """

    REGRESSED = "regressed"
    NOT_COMPARABLE = "not comparable"
    INCONCLUSIVE = "inconclusive"
    CHANGED = "changed"
    FASTER = "faster"
    IMPROVED = "improved"
    SAME = "same"


class Routing(StrEnum):
    """A routing is the way in which the tokens of a mixture of experts choose their experts."""

    MODEL = "model"
    """The model's own router chooses. A dense model has this routing too, with nothing to
    choose."""
    BALANCED = "balanced"
    """Experts are drawn evenly, and the router's choice is not used. See ``models.routing``."""


class Phase(StrEnum):
    """A phase is what one captured graph holds: a part of the iteration, or all of it."""

    VERIFY = "verify"
    DRAFT_FIRST = "draft_first"
    DRAFT_REST = "draft_rest"
    ITERATION = "iteration"

    @property
    def scope(self) -> Scope:
        """Return the scope whose graphs hold this phase."""
        return Scope.ITERATION if self is Phase.ITERATION else Scope.PHASE


class StageKind(StrEnum):
    """A stage kind is a kind of work that is timed in an iteration. Each draft step is a stage of
    its own."""

    VERIFY = "verify"
    ACCEPT = "accept"
    DRAFT = "draft"
    COMMIT = "commit"
    ITERATION = "iteration"
    """All of the kinds above are timed as one."""
    COLLECTIVES = "collectives"
    """The exchange between ranks of an iteration is timed alone."""
    HOST_GAP = "host_gap"
    """The wall time minus the GPU time, in thin samples alone. It may be negative, because a
    read-back may overlap the next iteration."""


PIECES = (StageKind.VERIFY, StageKind.ACCEPT, StageKind.DRAFT, StageKind.COMMIT)
"""These stage kinds make up an iteration, in order."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage is a timed piece of an iteration. ``str`` gives its name in files and profilers.

    ``first`` and ``last`` are draft steps, counted from 1. They are None if the stage is no draft,
    or if it is all drafts together.
    """

    VERIFY: ClassVar["Stage"]
    ACCEPT: ClassVar["Stage"]
    COMMIT: ClassVar["Stage"]
    ITERATION: ClassVar["Stage"]
    COLLECTIVES: ClassVar["Stage"]
    HOST_GAP: ClassVar["Stage"]

    kind: StageKind
    first: int | None = None
    last: int | None = None

    @classmethod
    def draft(cls, step: int, last: int | None = None) -> "Stage":
        """Return the stage of draft ``step``, or of the drafts ``step`` to ``last`` together."""
        return cls(StageKind.DRAFT, step, step if last is None else last)

    @classmethod
    def of_iteration(cls, spec_tokens: int, *, is_parallel: bool = False) -> "tuple[Stage, ...]":
        """Return the stages of one iteration of ``spec_tokens`` drafts, in order.

        A parallel drafter makes them all in the stage of draft 1.
        """
        last = min(spec_tokens, 1) if is_parallel else spec_tokens
        drafts = map(cls.draft, range(1, last + 1))
        return (cls.VERIFY, cls.ACCEPT, *drafts, cls.COMMIT)

    @classmethod
    def parse(cls, name: str) -> "Stage":
        """Return the stage with the given name. Raise ``ValueError`` if there is none."""
        if name in [*StageKind]:
            return cls(StageKind(name))
        kind, _, steps = name.rpartition("_")
        first, _, last = steps.partition("..")
        found = cls.draft(int(first), int(last or first))
        if kind != StageKind.DRAFT or str(found) != name:
            raise ValueError(f"{name} is no stage")
        return found

    def __str__(self) -> str:
        if self.first is None:
            return self.kind.value
        steps = f"{self.first}" if self.first == self.last else f"{self.first}..{self.last}"
        return f"{self.kind}_{steps}"


Stage.VERIFY = Stage(StageKind.VERIFY)
Stage.ACCEPT = Stage(StageKind.ACCEPT)
Stage.COMMIT = Stage(StageKind.COMMIT)
Stage.ITERATION = Stage(StageKind.ITERATION)
Stage.COLLECTIVES = Stage(StageKind.COLLECTIVES)
Stage.HOST_GAP = Stage(StageKind.HOST_GAP)


class Quant(StrEnum):
    """A quant is the way in which weights are held and multiplied.

    ``w8a16`` holds FP8 weights and multiplies them by activations that are not quantised. ``w8a8``
    quantises activations to FP8 too: each token, a block of columns at a time.
    """

    NONE = "none"
    W8A16 = "w8a16"
    W8A8 = "w8a8"
