"""The vocabulary: words that every room uses. The standard library alone."""

from enum import StrEnum


class Scope(StrEnum):
    """What was asked for: no graphs, one graph a phase, or one for the whole iteration."""

    EAGER = "eager"
    PHASE = "phase"
    ITERATION = "iteration"


class Mode(StrEnum):
    """What really ran: a scope runs eager where the batch is above its largest bucket."""

    GRAPH = "graph"
    EAGER = "eager"


class Status(StrEnum):
    """Whether a cell's numbers can be trusted, and if not, why."""

    OK = "ok"
    AUDIT_FAILED = "audit_failed"
    OOM = "oom"
    DISTURBED = "disturbed"
    FLOOR_BEATEN = "floor_beaten"
    """Faster than its floor by more than is known of both: the floor is wrong."""


class Routing(StrEnum):
    """How the tokens of a mixture of experts choose theirs."""

    MODEL = "model"
    """By the model's own router; a dense model's too, which has nothing to choose."""
    BALANCED = "balanced"
    """Drawn evenly, whatever the router says: see ``models.routing``."""


class Phase(StrEnum):
    """What one captured graph holds: a third of the iteration (scope phase), or all of it."""

    VERIFY = "verify"
    DRAFT_FIRST = "draft_first"
    DRAFT_REST = "draft_rest"
    ITERATION = "iteration"

    @property
    def scope(self) -> Scope:
        """The scope whose graphs hold this."""
        return Scope.ITERATION if self is Phase.ITERATION else Scope.PHASE
