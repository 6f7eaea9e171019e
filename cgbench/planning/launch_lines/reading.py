"""What one engine's reader found in a line, before the engine's defaults are added."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from cgbench.planning.draft_schedule import DraftSchedule
from cgbench.planning.gpus import Gpu
from cgbench.planning.plan_request import PlanRequest


@dataclass(frozen=True, slots=True)
class Given:
    """Fields of ``PlanRequest`` that a line may give; None where the engine's default holds."""

    max_batch_size: int | None = None
    max_num_batched_tokens: int | None = None
    graph_sizes: tuple[int, ...] | None = None
    graph_maximum: int | None = None
    tp_size: int | None = None
    pad: bool | None = None

    def names(self) -> frozenset[str]:
        """The fields that were given."""
        return frozenset(each.name for each in fields(self) if getattr(self, each.name) is not None)

    def applied(self, base: PlanRequest) -> PlanRequest:
        """``base`` with what was given."""
        return replace(base, **{name: getattr(self, name) for name in self.names()})


@dataclass
class Reading:
    """A request with what the line says, and the fields that it gives.

    ``warnings`` name options that the plan does not follow. ``schedule`` makes the draft lengths
    by batch size once the most requests are known. ``num_gpus`` is how many share the model, where
    a default follows it, ``default_factor`` what the engine multiplies its default budgets by.
    ``prefill`` describes the graphs of prefills on a GPU.
    """

    engine: str
    request: PlanRequest
    given: Given
    warnings: list[str] = field(default_factory=list)
    num_gpus: int = 1
    default_factor: int = 1
    schedule: Callable[[int], DraftSchedule] | None = None
    prefill: Callable[[Gpu | None], Iterable[str]] | None = None

    def add_unknown(self, unknown: Sequence[str], unplanned: Mapping[str, str]) -> None:
        """Warn of what changes the plan and has no rule, and of what is not understood."""
        for text in unknown:
            name = text.partition(" ")[0]
            if reason := unplanned.get(name):
                self.warnings.append(f"{text}: not planned; {reason}")
            else:
                self.warnings.append(f"{text}: not understood")
