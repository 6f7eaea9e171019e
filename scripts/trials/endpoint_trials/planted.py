"""Audit the tests' own server, sound and with each planted fault."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cgbench.endpoint.edge_findings import EndpointResult
from cgbench.rundir.environment import environment
from cgbench.tables.markdown import markdown_table
from tests.endpoint.test_served_faults import TIERED, TIERS
from tests.support.served import audit_of, serving
from tests.support.served_faults import FAULTS

PLANS: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = (
    ("buckets 1, 2, 4 of 6, eager above", {}, {}),
    ("buckets 1, 2, 3, 6", {"buckets": (1, 2, 3, 6)}, {}),
    ("buckets 2, 6", {"buckets": (2, 6)}, {}),
    ("k = 1", {"tiers": ((6, 1),)}, {}),
    ("k = 0", {"tiers": ((6, 0),)}, {}),
    ("k = 3 up to 3 requests, then 0", {"tiers": TIERS}, {"launch_line": TIERED}),
)
PROMPTS = (3, 4, 5, 6)
LENGTHS = (16, 20, 24, 28, 32)
STALE = {"num_prompts": 12, "max_new_tokens": 96, "repeats": 4, "edges": (3,)}


@dataclass(frozen=True)
class Audited:
    """One audit: what was planted, and what it said."""

    name: str
    exit_code: int
    verdicts: Mapping[str, int]
    requests: int
    seconds: float
    noise: float
    details: str

    @classmethod
    def of(cls, name: str, result: EndpointResult) -> "Audited":
        said = (each.details or each.reason for each in result.findings if each.verdict != "holds")
        return cls(
            name,
            int(result.exit_code),
            {str(verdict): count for verdict, count in result.counts.items()},
            result.requests,
            result.seconds,
            result.noise.token,
            next(filter(None, said), ""),
        )


def audit_clean(count: int, folder: Path) -> None:
    """Audit a sound server ``count`` times, and write how often it was called anything else."""
    start = time.perf_counter()
    found = []
    for index in range(count):
        found.append(_clean(index))
        print(f"{index + 1}/{count}: {found[-1].name}: {found[-1].verdicts}", flush=True)
    alarms = sum(each.exit_code == 1 for each in found)
    unclear = sum(each.exit_code == 4 for each in found)
    lines = [
        f"{count} audits of a sound server took {time.perf_counter() - start:.0f} s. "
        f"{alarms} said that something is wrong, and {unclear} were unclear.",
        "",
        markdown_table(
            ("plan", "audits", "wrong", "unclear", "requests", "noise, at most"),
            [*_by_plan(found)],
            left=("plan",),
        ),
    ]
    _write(folder, "clean", "Audits of a sound server", lines, found)


def audit_faults(folder: Path) -> None:
    """Audit a server with each fault, and write which were caught."""
    found = [_faulty(name) for name in FAULTS]
    caught = sum(each.exit_code == 1 for each in found)
    rows = [
        [
            each.name,
            {0: "no", 1: "yes", 4: "unclear"}[each.exit_code],
            each.details,
            str(each.requests),
        ]
        for each in found
    ]
    table = markdown_table(
        ("fault", "caught", "what was said first", "requests"),
        rows,
        left=("fault", "caught", "what was said first"),
    )
    lines = [f"{caught} of {len(found)} faults were caught.", "", table]
    _write(folder, "faults", "Audits of a server with a planted fault", lines, found)


def _clean(index: int) -> Audited:
    name, server_fields, request_fields = PLANS[index % len(PLANS)]
    sizes = {
        "num_prompts": PROMPTS[index % len(PROMPTS)],
        "max_new_tokens": LENGTHS[index % len(LENGTHS)],
    }
    with serving(**server_fields) as server:
        return Audited.of(name, audit_of(server, in_order=False, **sizes, **request_fields))


def _faulty(name: str) -> Audited:
    if name == "DraftKvStaleAfterNone":
        with serving(FAULTS[name], tiers=TIERS) as server:
            return Audited.of(name, audit_of(server, in_order=False, launch_line=TIERED, **STALE))
    with serving(FAULTS[name]) as server:
        return Audited.of(name, audit_of(server, in_order=False))


def _by_plan(found: Sequence[Audited]) -> Iterator[list[str]]:
    for name in dict.fromkeys(each.name for each in found):
        of_plan = [each for each in found if each.name == name]
        yield [
            name,
            str(len(of_plan)),
            str(sum(each.exit_code == 1 for each in of_plan)),
            str(sum(each.exit_code == 4 for each in of_plan)),
            str(sum(each.requests for each in of_plan)),
            f"{max(each.noise for each in of_plan):.2g}",
        ]


def _write(
    folder: Path, name: str, title: str, lines: Sequence[str], found: Sequence[Audited]
) -> None:
    where = environment()
    machine = f"{where.get('cpu')}, torch {torch.__version__}, commit {where.get('cgbench_commit')}"
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python scripts/trials/audit_servers.py {name} --output {folder}"
    text = "\n".join([f"# {title}", "", f"`{command}` on {machine}.", "", *lines, ""])
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    content = [vars(each) for each in found]
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
