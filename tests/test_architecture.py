"""docs/architecture.md is true of the code: every file that it names is there, and every room."""

import re
from pathlib import Path

import pytest

from tests.test_imports import MODULES, ROOMS, room_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:cgbench|tests|scripts|docs|results)/[\w./-]*)`", PAGE)))
ROWS = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)


def test_paths_are_found_in_the_page() -> None:
    assert len(PATHS) > 40


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_the_page_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_page_has_the_rooms_that_there_are_in_their_order() -> None:
    there = {room_of(module) for module in MODULES}
    assert ROWS == [room for room in ROOMS if room in there]


def test_the_picture_has_every_room() -> None:
    assert {*ROWS} <= {*re.findall(r"\w+", PAGE.split("```")[1])}
