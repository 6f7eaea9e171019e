"""Nothing outside tests/ replaces what it calls: no unittest.mock, no command line put into sys."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file
    for folder in ("cgbench", "scripts", ".ci", ".github")
    for file in (ROOT / folder).glob("**/*.py")
)


def patches_of(source: str) -> Iterator[str]:
    """Each import of ``unittest.mock`` and each write to ``sys.argv``, by its line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = any(alias.name.startswith("unittest") for alias in names)
            case ast.ImportFrom(module=str(module)):
                found = module.startswith("unittest")
            case ast.Assign(targets=targets):
                found = any(map(_is_argv, targets))
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
                found = _is_argv(target)
            case ast.Call(func=ast.Name(id="setattr"), args=[_, ast.Constant(value="argv"), *_]):
                found = True
            case _:
                found = False
        if found:
            yield f"line {getattr(node, 'lineno', 0)}"


def _is_argv(target: ast.expr) -> bool:
    """Whether it is ``sys.argv``, or a part of it, alone or among others."""
    return any(isinstance(each, ast.Attribute) and each.attr == "argv" for each in ast.walk(target))


def test_files_are_found() -> None:
    assert len(FILES) > 200


def test_no_file_outside_tests_patches_what_it_calls() -> None:
    found = [
        f"{file.relative_to(ROOT)} {line}"
        for file in FILES
        for line in patches_of(file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import unittest.mock",
        "import os, unittest.mock as m",
        "from unittest import mock",
        "from unittest.mock import patch",
        "def late():\n    from unittest import mock",
        "sys.argv = []",
        "sys.argv[1:] = words",
        "before, sys.argv = sys.argv, words",
        "sys.argv += words",
        "setattr(sys, 'argv', words)",
    ],
)
def test_each_form_of_a_patch_is_seen(source: str) -> None:
    assert len([*patches_of(source)]) == 1


def test_reading_the_command_line_is_none() -> None:
    assert [*patches_of("words = sys.argv[1:]\ncommand = {'argv': sys.argv}")] == []
