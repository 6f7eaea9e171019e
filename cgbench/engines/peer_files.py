"""Keep a comparison of peers on disk. It is written after every round, and the next command
continues it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from cgbench.engines.peer_rows import PEERS, Result, Round, SharedFacts
from cgbench.errors import BadInputError, OutputError
from cgbench.inputs import parse_json, read_text

# These may differ between commands whose rounds stand in one row.
OF_A_COMMAND = frozenset({"command", "notes"})

MAX_FILE_BYTES = 64 << 20

ANOTHER_OUTPUT = "Choose another --output"


@dataclass(frozen=True)
class Found:
    """A ``Found`` holds what earlier commands left: the shared facts as the file has them, and the
    rows.
    """

    file: Path
    facts: Mapping[str, Any]
    results: list[Result]

    def results_of(self, facts: SharedFacts) -> list[Result]:
        """Return the rows, if they were measured under these ``facts``.

        Raise ``BadInputError`` if they are of another model, machine or setting.
        """
        # The facts are compared as they would come back from a file.
        asked = json.loads(json.dumps(asdict(facts)))
        names = (self.facts.keys() | asked.keys()) - OF_A_COMMAND
        others = sorted(name for name in names if self.facts.get(name) != asked.get(name))
        if self.facts and others:
            raise BadInputError(f"{self.file} is of another {', '.join(others)}. {ANOTHER_OUTPUT}")
        return self.results


def json_file(output: Path) -> Path:
    """Return the file that keeps the rounds of the comparison ``output``. ``output`` names files
    without their ending.
    """
    return output.with_name(f"{output.name}.json")


def markdown_file(output: Path) -> Path:
    """Return the file that keeps the tables of the comparison ``output``."""
    return output.with_name(f"{output.name}.md")


def open_output(output: Path) -> Found:
    """Return the rows that earlier commands left, none if there was no earlier command. The folder
    is made.

    Raise ``BadInputError`` if the files cannot be written, or hold something else.
    """
    if not output.name:
        raise BadInputError(f"--output {output}: must end in a name, as in results/peers")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        is_there = json_file(output).exists()
    except OSError as error:
        raise BadInputError(f"--output {output}: {error.strerror}") from error
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise BadInputError(f"--output {output}: {output.parent} cannot be written to")
    return _read(json_file(output)) if is_there else Found(json_file(output), {}, [])


def _read(file: Path) -> Found:
    found = parse_json(str(file), read_text(str(file), file, MAX_FILE_BYTES))
    try:
        rows = found.pop("peers")
        return Found(file, found, [_result(row) for row in rows])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{file} holds no comparison of peers. {ANOTHER_OUTPUT}") from error


def _result(row: Any) -> Result:
    """Return a row as it was written. Raise ``ValueError``, or another error that ``_read``
    catches, for what no comparison writes.
    """
    made = Result(**{**row, "rounds": [Round(**each) for each in row["rounds"]]})
    is_known = made.name in PEERS and isinstance(made.reason, str | None)
    if not is_known or type(made.calls) is not int or not all(map(_is_sound, made.rounds)):
        raise ValueError(made.name)
    return made


def _is_sound(each: Round) -> bool:
    return type(each.steps) is int and 0 < each.steps and 0 < each.seconds < inf > each.tokens >= 0


def write(output: Path, facts: SharedFacts, results: Sequence[Result], tables: str) -> None:
    """Write the tables to ``NAME.md``, and every round as it was timed to ``NAME.json``.

    Raise ``OutputError`` if that fails. The files of the round before stay.
    """
    rows = [asdict(result) for result in results]
    try:
        _replace(json_file(output), json.dumps({**asdict(facts), "peers": rows}, indent=2) + "\n")
        _replace(markdown_file(output), tables)
    except OSError as error:
        raise OutputError(
            f"--output {output}: cannot be written: {error.strerror}. The rounds before are kept"
        ) from error


def _replace(file: Path, text: str) -> None:
    """Write the file aside, then rename it into place. A kill leaves the one before."""
    aside = file.with_name(f"{file.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)
