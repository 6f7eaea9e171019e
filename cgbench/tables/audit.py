"""Write the audit's checklist for people."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cgbench.checks.finding_facts import FindingFacts

STYLES = {"holds": "green", "wrong": "bold red", "not run": "yellow"}


def checklist(findings: "Sequence[FindingFacts]", title: str) -> Table:
    """Return the terminal's table of an audit, a row a check. A wrong check has what was wrong
    first under its figures.
    """
    table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("what it checks", overflow="fold")
    table.add_column("figures", overflow="fold")
    for finding in findings:
        verdict = finding["verdict"]
        shown = Text(verdict.upper() if verdict == "wrong" else verdict, STYLES[verdict])
        table.add_row(Text(finding["check"]), shown, Text(finding["title"]), Text(_told(finding)))
    return table


def summary(findings: "Sequence[FindingFacts]", seconds: float) -> str:
    """Return a line that counts the checks that hold, are wrong, and were not run."""
    counts = Counter(finding["verdict"] for finding in findings)
    return (
        f"{len(findings)} checks in {seconds:.1f} s: {counts['holds']} hold, "
        f"{counts['wrong']} wrong, {counts['not run']} not run"
    )


def _told(finding: "FindingFacts") -> str:
    """Return what a check measured. If it is wrong, what was wrong first follows. If it was not
    run, the reason follows.
    """
    figures = ", ".join(f"{name} {figure(value)}" for name, value in finding["figures"].items())
    return "\n".join(filter(None, (figures, finding["details"], finding["reason"])))


def figure(value: Any) -> str:
    """Return a figure in few characters."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "/".join(map(figure, value))
    return str(value)
