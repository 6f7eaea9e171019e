"""An engine's answers beside the policy's, and the smallest case where they differ."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Case(Protocol):
    """One configuration. ``size`` orders them: the smallest is the easiest to read."""

    @property
    def size(self) -> tuple[int, ...]: ...


C = TypeVar("C", bound=Case)


@dataclass(frozen=True, slots=True)
class Answer:
    """Batch sizes with a graph by phase, and the engine's own list; or why it refuses."""

    listed: tuple[int, ...] = ()
    verify: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    refused: bool = False


@dataclass(frozen=True)
class Difference:
    """A case that the engine and the policy plan differently."""

    case: Case
    engine: Answer
    policy: Answer


@dataclass(frozen=True)
class Drift:
    """All that was compared."""

    num_cases: int
    differences: tuple[Difference, ...]

    @property
    def smallest(self) -> Difference | None:
        return min(self.differences, key=lambda each: each.case.size, default=None)


def compared(
    cases: Iterable[C], engine: Callable[[C], Answer], policy: Callable[[C], Answer]
) -> Drift:
    """Every case by both."""
    count, found = 0, list[Difference]()
    for case in cases:
        count += 1
        theirs, ours = engine(case), policy(case)
        if theirs != ours:
            found.append(Difference(case, theirs, ours))
    return Drift(count, tuple(found))


def report(engine: str, policy: str, drift: Drift) -> str:
    """Lines for a person: how many, and the smallest case with both answers."""
    count = len(drift.differences)
    lines = [f"{engine} against {policy}: {drift.num_cases} plans, {count} differences"]
    if (worst := drift.smallest) is not None:
        lines += [f"  smallest: {worst.case}", f"  engine: {worst.engine}"]
        lines += [f"  policy: {worst.policy}"]
    return "\n".join(lines)
