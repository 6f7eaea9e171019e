"""Hold what the tables of ``cgbench plan`` share: a section, and how a value is shown."""

from dataclasses import dataclass

from cgbench.planning.study import Outcome
from cgbench.tables.plan_rows import without_noise


@dataclass(frozen=True)
class Section:
    """A ``Section`` is a titled table of texts, with notes under it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def workload(outcome: Outcome) -> str:
    """Return the name of the batch sizes that count."""
    request = outcome.request
    found = request.concurrency
    return found.words(request.max_batch_size) if found else "every batch size alike"


def number(value: int | None) -> str:
    """Return a whole number as text, or nothing for None."""
    return "" if value is None else str(value)


def counted(count: int, noun: str) -> str:
    """Return how many of a thing there are, such as ``1 graph`` and ``2 graphs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(share: float | None) -> str:
    """Return a share as per cent, or nothing for None."""
    # Plus 0.0, because a tiny loss is no "-0.0 %".
    return "" if share is None else f"{round(100 * without_noise(share), 1) + 0.0:.1f} %"


def cost(value: float | None) -> str:
    """Return a cost with four digits or more, or nothing for None."""
    if value is None:
        return ""
    exact = without_noise(value)
    return f"{exact:,.0f}" if abs(exact) >= 1e4 else f"{exact:.4g}"


def span_of(first: int | None, last: int | None) -> str:
    """Return a range of numbers, such as ``17-20``, or one number if both ends are the same."""
    return number(first) if first == last else f"{first}-{last}"


def setting(outcome: Outcome) -> str:
    """Return what a plan was made for: k, the engine's limit and the workload."""
    request = outcome.request
    return f"k = {request.spec_tokens}, max_num_seqs {request.max_batch_size}, {workload(outcome)}"
