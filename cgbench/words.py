"""These words are the vocabulary that every room uses. The standard library alone."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Scope(StrEnum):
    """A scope is what was asked for: no graphs, one a phase, or one for the whole iteration."""

    EAGER = "eager"
    PHASE = "phase"
    ITERATION = "iteration"


class Mode(StrEnum):
    """A mode is what really ran. A scope runs eager if the batch is above its largest bucket."""

    GRAPH = "graph"
    EAGER = "eager"


class Status(StrEnum):
    """A status says whether a cell's numbers can be trusted, and if not, why."""

    OK = "ok"
    AUDIT_FAILED = "audit_failed"
    OOM = "oom"
    DISTURBED = "disturbed"
    FLOOR_BEATEN = "floor_beaten"
    """Faster than its floor by more than is known of both: the floor is wrong."""


class Verdict(StrEnum):
    """A verdict is what a comparison says about one quantity.

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
    """Routing is how the tokens of a mixture of experts choose theirs."""

    MODEL = "model"
    """By the model's own router; a dense model's too, which has nothing to choose."""
    BALANCED = "balanced"
    """Drawn evenly, whatever the router says: see ``models.routing``."""


class Phase(StrEnum):
    """A phase is what one captured graph holds: a part of the iteration, or all of it."""

    VERIFY = "verify"
    DRAFT_FIRST = "draft_first"
    DRAFT_REST = "draft_rest"
    ITERATION = "iteration"

    @property
    def scope(self) -> Scope:
        """The scope whose graphs hold this."""
        return Scope.ITERATION if self is Phase.ITERATION else Scope.PHASE


class StageKind(StrEnum):
    """A stage kind is what is timed of an iteration. Each draft step is a stage of its own."""

    VERIFY = "verify"
    ACCEPT = "accept"
    DRAFT = "draft"
    COMMIT = "commit"
    ITERATION = "iteration"
    """All of these, timed as one."""
    COLLECTIVES = "collectives"
    """What the ranks exchange in an iteration, timed alone."""
    HOST_GAP = "host_gap"
    """Wall time minus GPU time, in thin samples alone. It may be negative, because a read-back may
    overlap the next iteration."""


PIECES = (StageKind.VERIFY, StageKind.ACCEPT, StageKind.DRAFT, StageKind.COMMIT)
"""What an iteration consists of, in order."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage is a timed piece of an iteration. ``str`` gives its name in files and profilers.

    ``first`` and ``last`` are draft steps, counted from 1. They are None where the stage is no
    draft, or all drafts together.
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
        """Draft ``step``, or the drafts ``step`` to ``last`` together."""
        return cls(StageKind.DRAFT, step, step if last is None else last)

    @classmethod
    def of_iteration(cls, spec_tokens: int) -> "tuple[Stage, ...]":
        """The stages of one iteration, in order."""
        drafts = map(cls.draft, range(1, spec_tokens + 1))
        return (cls.VERIFY, cls.ACCEPT, *drafts, cls.COMMIT)

    @classmethod
    def parse(cls, name: str) -> "Stage":
        """The stage of that name. Raises ``ValueError`` where there is none."""
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
    """How weights are held and multiplied: plain, or FP8 whose values multiply activations that are
    not quantised."""

    NONE = "none"
    W8A16 = "w8a16"
