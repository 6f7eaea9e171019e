"""What the tables of ``cgbench plan`` share: a section, and how a value is shown."""

from dataclasses import dataclass

from cgbench.planning.study import Outcome
from cgbench.tables.plan_rows import without_noise


@dataclass(frozen=True)
class Section:
    """A titled table of texts, and what is to be said under it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def workload(outcome: Outcome) -> str:
    """The name of the batch sizes that count."""
    found = outcome.request.concurrency
    return found.name if found else "every batch size alike"


def number(value: int | None) -> str:
    return "" if value is None else str(value)


def percent(share: float | None) -> str:
    # Plus 0.0, for a tiny loss is no "-0.0 %".
    return "" if share is None else f"{round(100 * without_noise(share), 1) + 0.0:.1f} %"


def cost(value: float | None) -> str:
    return "" if value is None else f"{without_noise(value):.4g}"


def span_of(first: int | None, last: int | None) -> str:
    return number(first) if first == last else f"{first}-{last}"


def setting(outcome: Outcome) -> str:
    """Return what a plan was made for: k, the engine's limit and the workload."""
    request = outcome.request
    return f"k = {request.spec_tokens}, max_num_seqs {request.max_batch_size}, {workload(outcome)}"
