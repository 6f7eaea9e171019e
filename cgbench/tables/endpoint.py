"""Write the findings of an audited server for people."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cgbench.endpoint.acceptance_across import Acceptance, AcceptanceFound
from cgbench.endpoint.edge_findings import EdgeFinding, EdgeVerdict, EndpointResult

STYLES = {
    EdgeVerdict.HOLDS: "green",
    EdgeVerdict.WRONG: "bold red",
    EdgeVerdict.FLAKY: "bold red",
    EdgeVerdict.UNCLEAR: "yellow",
    EdgeVerdict.NOT_RUN: "yellow",
}
LOUD = (EdgeVerdict.WRONG, EdgeVerdict.FLAKY)


def edge_table(result: EndpointResult) -> Table:
    """Return the terminal's table of an audit. A row is an edge, with what was wrong there."""
    title = Text(f"{result.model} at {result.request.endpoint}: {result.plan}")
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("edge", "verdict", "batch"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what changes there", overflow="fold")
    table.add_column("figures", overflow="fold")
    for finding in result.findings:
        verdict = finding.verdict
        shown = Text(verdict.upper() if verdict in LOUD else verdict, STYLES[verdict])
        table.add_row(
            Text(finding.edge),
            shown,
            Text(f"{finding.most_at_once}/{finding.peak}" if finding.attempts else ""),
            Text(", ".join(finding.changes)),
            Text("\n".join(_told(finding))),
        )
    return table


def endpoint_summary(result: EndpointResult) -> str:
    """Return the outcome of an audit in one line."""
    words = {EdgeVerdict.HOLDS: "hold"}
    counts = ", ".join(f"{n} {words.get(verdict, verdict)}" for verdict, n in result.counts.items())
    noise = f"noise {result.noise.token:.2g} in {result.noise.positions} logprobs"
    return (
        f"{len(result.findings)} edges, {result.requests} requests in {result.seconds:.1f} s, "
        f"{noise}: {counts}, exit code {int(result.exit_code)}"
    )


def _told(finding: EdgeFinding) -> Iterator[str]:
    figures = [*_figures(finding)]
    if figures:
        yield ", ".join(figures)
    yield from filter(None, (finding.details, finding.reason))


def _figures(finding: EdgeFinding) -> Iterator[str]:
    if not finding.attempts:
        return
    if finding.wrong_attempts:
        yield f"wrong in {finding.wrong_attempts} of {finding.attempts}"
    if finding.near_ties:
        yield f"{finding.near_ties} near-ties, largest {finding.largest_gap:.2g}"
    if finding.gap_ms is not None:
        yield f"gap {finding.gap_ms:.3g} ms"
    if finding.acceptance is not None:
        yield from _acceptance(finding.acceptance)


def _acceptance(found: AcceptanceFound) -> Iterator[str]:
    if found.answer is Acceptance.UNKNOWN or found.alone is None:
        return
    if found.here is None:
        yield f"{found.alone:.3g} drafts kept"
    else:
        yield f"{found.here:.3g} drafts kept, alone {found.alone:.3g}"
