"""Hold what one engine's reader found in a line, before the engine's defaults are added."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from cgbench.planning.draft_schedule import DraftSchedule
from cgbench.planning.gpus import Gpu
from cgbench.planning.plan_request import PlanRequest


@dataclass(frozen=True, slots=True)
class Given:
    """A ``Given`` holds fields of ``PlanRequest`` that a line gave, and None for all others.

    The engine's default holds for a field that is None.
    """

    max_batch_size: int | None = None
    max_num_batched_tokens: int | None = None
    graph_sizes: tuple[int, ...] | None = None
    graph_maximum: int | None = None
    tp_size: int | None = None
    pad: bool | None = None

    def names(self) -> frozenset[str]:
        """Return the names of the fields that were given."""
        return frozenset(each.name for each in fields(self) if getattr(self, each.name) is not None)

    def applied(self, base: PlanRequest) -> PlanRequest:
        """Return ``base`` with the given fields in it."""
        return replace(base, **{name: getattr(self, name) for name in self.names()})


@dataclass
class Reading:
    """A ``Reading`` holds the request that a line asks for, and the fields that the line gives.

    ``warnings`` name options that the plan does not follow. ``notes`` state what the plan took from
    elsewhere in the line. ``num_gpus`` is how many GPUs share the
    model, if a default follows it. ``default_factor`` is what the engine multiplies its default
    budgets by. ``schedule`` makes the draft lengths by batch size once the most requests are known.
    ``prefill`` describes the graphs of prefills on a GPU.
    """

    engine: str
    request: PlanRequest
    given: Given
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_gpus: int = 1
    default_factor: int = 1
    schedule: Callable[[int], DraftSchedule] | None = None
    prefill: Callable[[Gpu | None], Iterable[str]] | None = None

    def add_unknown(self, unknown: Sequence[str], unplanned: Mapping[str, str]) -> None:
        """Add a warning for each option that changes the plan without a rule, or is not understood.

        The value 1 gets no warning, because one rank or one stage is none at all.
        """
        for text in unknown:
            name, _, value = text.partition(" ")
            if reason := unplanned.get(name):
                # One rank or one stage changes nothing.
                self.warnings += [f"{text}: not planned ({reason})"] * (value != "1")
            else:
                self.warnings.append(f"{text}: not understood")
