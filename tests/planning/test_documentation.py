"""docs/plan.md is true of the planner: its examples by phase, its releases and its flags."""

import re
from pathlib import Path

import pytest

from cgbench.planning import PlanRequest, plan
from cgbench.planning.phases import PhaseGraphs, phases_of, ranges
from cgbench.planning.policies import POLICIES, RELEASES
from cgbench.words import Phase

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(
    r"^### `(?P<policy>[\w.-]+)`, S = (?P<most>\d+), k = (?P<k>\d+)(?:, ceiling (?P<ceiling>\d+))?$"
    r"(?P<body>.*?)(?=^###? |\Z)",
    re.MULTILINE | re.DOTALL,
)
ROW = re.compile(r"^\| (verify|draft 1|drafts 2\.\.k|iteration) \| ([^|]+) \| ([^|]+) \|$", re.M)
PHASES = {
    "verify": Phase.VERIFY,
    "draft 1": Phase.DRAFT_FIRST,
    "drafts 2..k": Phase.DRAFT_REST,
    "iteration": Phase.ITERATION,
}
EXAMPLES = list(EXAMPLE.finditer(PAGE))
RELEASE_ROWS = re.findall(r"^\| (`[\w.-]+`(?:, `[\w.-]+`)*) \| ([^|]+) \|", PAGE, re.MULTILINE)


def written(sizes: list[int]) -> str:
    """As the page lists sizes: neighbours together."""
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges(sizes)]
    return ", ".join(parts) or "none"


def eager(phase: PhaseGraphs) -> list[int]:
    return [n for span in phase.eager_spans for n in range(span.first, span.last + 1)]


def test_every_engine_has_an_example() -> None:
    engines = {name.rpartition("-")[0] or name for name in POLICIES}
    shown = {found["policy"].rpartition("-")[0] or found["policy"] for found in EXAMPLES}
    assert shown == engines - {"explicit", "scaled", "exact", "optimal", "nano"}


@pytest.mark.parametrize("found", EXAMPLES, ids=lambda found: found[0].splitlines()[0])
def test_an_example_is_what_the_planner_answers(found: re.Match[str]) -> None:
    ceiling = found["ceiling"]
    request = PlanRequest(
        int(found["k"]),
        int(found["most"]),
        found["policy"],
        graph_maximum=int(ceiling) if ceiling else None,
    )
    phases = phases_of(request, plan(request)).phases
    rows = ROW.findall(found["body"])
    assert [PHASES[name] for name, _, _ in rows] == [each.phase for each in phases]
    for (_, sizes, holes), phase in zip(rows, phases, strict=True):
        assert sizes == written(list(phase.batch_sizes))
        assert holes == written(eager(phase))


def test_the_page_has_every_policys_release() -> None:
    stated = {
        name: releases
        for names, releases in RELEASE_ROWS
        for name in re.findall(r"`([\w.-]+)`", names)
        if name in POLICIES
    }
    assert stated.keys() == RELEASES.keys()
    for name, release in RELEASES.items():
        number = release.split()[0]
        assert number in stated[name], name


def test_every_engines_policy_carries_a_release() -> None:
    assert RELEASES.keys() == POLICIES.keys() - {"explicit", "scaled", "exact", "optimal"}
