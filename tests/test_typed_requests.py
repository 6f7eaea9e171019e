"""What is passed on has a type: a request that is a dictionary is spelled wherever it is read."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cgbench"
SOURCES = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
DICTIONARY = r"dict\[str, Any\]"
MOST = 15
"""So many dictionaries of anything there may be. JSON that somebody else wrote is one."""


def test_dictionaries_of_anything_are_few() -> None:
    found = [path.name for path, text in SOURCES.items() for _ in re.findall(DICTIONARY, text)]
    assert len(found) <= MOST, found


def test_no_argument_is_read_by_its_name() -> None:
    assert not [path.name for path, text in SOURCES.items() if 'arguments["' in text]
