"""Write what the study found: a table of the wirings, and what it settles."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from cgbench.gate.verdicts import Interval
from cgbench.models.heads.head_wiring import stated_points
from cgbench.tables.markdown import markdown_table
from wiring_study.evidence import Judged, Tried

FLAGS = {
    "concat": "--head-concat",
    "hidden_in": "--head-hidden",
    "chain": "--chain-norm",
    "out_norm": "--head-out-norm",
    "norm_form": "--head-norm-form",
    "first_embed": "--head-first-embed",
    "feed": "--head-feed",
}
"""This is the flag that states each point of a wiring."""

DECLARED = "declared"


def points_of(tried: Tried) -> dict[str, str]:
    """Return each point of a wiring with its value."""
    return {name: str(value) for name, value in stated_points(tried.wiring).items()}


def varied(tried: Sequence[Tried]) -> list[str]:
    """Return the points in which the wirings differ."""
    points = [points_of(each) for each in tried]
    return [name for name in points[0] if len({each[name] for each in points}) > 1]


def headings(judged: Judged) -> list[str]:
    """Return the table's headings."""
    points = [FLAGS[name].removeprefix("--") for name in varied(judged.tried)]
    positions = [f"accepted {j}" for j in range(1, judged.spec_tokens + 1)]
    return ["", *points, "accept length", *positions, "behind the best"]


def rows(judged: Judged) -> Iterator[list[str]]:
    """Yield a row of cells for each wiring, the best first."""
    names = varied(judged.tried)
    for each in judged.tried:
        points = points_of(each)
        yield [
            DECLARED if each.is_declared else "",
            *(points[name] for name in names),
            shown(each.length),
            *map(shown, each.rates),
            "" if each.behind is None else shown(each.behind),
        ]


def shown(of: Interval) -> str:
    """Return an estimate with its interval, as text."""
    return f"{of.estimate:.2f} ({of.low:.2f} to {of.high:.2f})"


def console_table(judged: Judged) -> Table:
    """Return the table for a terminal. The declared wiring is bold."""
    table = Table(*headings(judged))
    for each, cells in zip(judged.tried, rows(judged), strict=True):
        table.add_row(*cells, style="bold" if each.is_declared else None)
    return table


def markdown(judged: Judged, title: str) -> str:
    """Return the whole result as Markdown."""
    names = headings(judged)
    left = names[: 1 + len(varied(judged.tried))]
    table = markdown_table(names, rows(judged), left=left)
    return "\n\n".join([f"# {title}", table, *conclusions(judged)]) + "\n"


def conclusions(judged: Judged) -> list[str]:
    """Return what the table settles, a paragraph a string."""
    said = [_measured(judged)]
    if len(judged.tried) == 1:
        return [
            *said,
            "There is nothing to compare: no other wiring can draft otherwise at this k.",
        ]
    return [*said, _best(judged), *_open_points(judged), _of_declared(judged)]


def _measured(judged: Judged) -> str:
    return (
        f"{judged.num_starts} starts in the target's own greedy text after {judged.num_prompts} "
        f"prompts, k = {judged.spec_tokens}. Lengths and rates have 95 % intervals. Those of "
        f"behind the best are paired, and hold together over all wirings ({len(judged.tried)})."
    )


def _best(judged: Judged) -> str:
    winner = judged.winner
    if winner is not None:
        following = judged.tried[1].behind
        assert following is not None
        return f"Winner: {_flags(judged, winner)}. The next one is behind by {shown(following)}."
    tied = judged.contenders
    text = f"No winner: {len(tied)} wirings are tied, because none of them is apart from the best."
    alike = sum(each.kept_alike for each in tied)
    if alike > 1:
        text += f" {alike} of them kept the same number of drafts at every start."
    return text


def _open_points(judged: Judged) -> Iterator[str]:
    """Yield which points the tied wirings agree on. Only a tie leaves any open."""
    if judged.winner is not None:
        return
    tied = [points_of(each) for each in judged.contenders]
    values = {name: {each[name] for each in tied} for name in varied(judged.tried)}
    settled = [f"{FLAGS[name]} {min(each)}" for name, each in values.items() if len(each) == 1]
    undecided = [FLAGS[name] for name, each in values.items() if len(each) > 1]
    if settled:
        yield f"Settled, because all of them agree: {', '.join(settled)}."
    yield f"Not settled: {', '.join(undecided)}."


def _of_declared(judged: Judged) -> str:
    declared = judged.declared
    if declared is judged.winner:
        return "The declared wiring is the winner."
    if not declared.is_apart:
        return "The declared wiring is tied with the best."
    assert declared.behind is not None
    best = _flags(judged, judged.tried[0])
    return f"The declared wiring is behind the best ({best}) by {shown(declared.behind)}."


def _flags(judged: Judged, tried: Tried) -> str:
    """Return the flags that state a wiring, without what all share."""
    points = points_of(tried)
    return " ".join(f"{FLAGS[name]} {points[name]}" for name in varied(judged.tried))
