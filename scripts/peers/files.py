"""What a comparison leaves on disk: written after every round, gone on with by the next call."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.rounds import Result, Round
from peers.tables import markdown

# These may differ between calls whose rounds stand in one row.
OF_A_CALL = frozenset({"command", "notes"})


def json_file(output: Path) -> Path:
    """The rounds of the comparison ``output``, which names files without their ending."""
    return output.with_name(f"{output.name}.json")


def read(output: Path, facts: Mapping[str, Any]) -> list[Result]:
    """The rows that earlier calls left; none where there was none.

    Exits where they are of another model, machine or setting.
    """
    file = json_file(output)
    if not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = found.pop("peers")
    # As they would come back from a file.
    asked = json.loads(json.dumps(facts))
    names = (found.keys() | asked.keys()) - OF_A_CALL
    if others := sorted(name for name in names if found.get(name) != asked.get(name)):
        what = ", ".join(others)
        raise SystemExit(f"error: {file} is of another {what}; choose another --output")
    return [_result(row) for row in rows]


def _result(row: dict[str, Any]) -> Result:
    rounds = [Round(**each) for each in row.pop("rounds")]
    return Result(**row, rounds=rounds)


def write(output: Path, facts: Mapping[str, Any], results: Sequence[Result]) -> None:
    """``NAME.md`` and ``NAME.json``: the tables, and every round as it was timed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result) for result in results]
    _replace(json_file(output), json.dumps({**facts, "peers": rows}, indent=2) + "\n")
    _replace(output.with_name(f"{output.name}.md"), markdown(facts, results))


def _replace(file: Path, text: str) -> None:
    """Aside, then renamed into place: a kill leaves the one before."""
    aside = file.with_name(f"{file.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)
