"""docs/troubleshooting.md quotes messages as the code prints them."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.docs.pages import MODULES, ROOT, tree_of

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# The first cell of a table's row, if a message stands in it.
MESSAGES = [found for found in re.findall(r"^\| `(.+?)`", PAGE, re.MULTILINE) if " " in found]
VALUE = "\0"


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a module, with a mark for each value that is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def source() -> str:
    """Every string of the package."""
    return "\n".join(text for path in MODULES for text in texts(tree_of(path)))


def test_messages_are_found() -> None:
    assert len(MESSAGES) > 25


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_code(message: str) -> None:
    for part in re.split(r"\.\.\.|\. ", message):
        words = part.strip(" :,.")
        assert words in source(), words
