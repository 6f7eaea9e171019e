"""This module lists the audit's checks, in the order in which they are reported."""

from collections.abc import Callable
from dataclasses import dataclass

from cgbench.checks import drafts, equality, hidden, hygiene, isolation, limits, padding, parity
from cgbench.checks.findings import Finding
from cgbench.checks.subject import Subject


@dataclass(frozen=True, slots=True)
class Check:
    """A ``Check`` is one check of the audit. ``title`` is a line that states what holds if the
    check holds.
    """

    name: str
    title: str
    run: Callable[[Subject], Finding]


CHECKS: tuple[Check, ...] = tuple(
    Check(module.NAME, module.TITLE, module.run)
    for module in (equality, hidden, drafts, parity, padding, isolation, hygiene, limits)
)
