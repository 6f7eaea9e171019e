"""The real command line parses every command of README and docs, and prints what stands there."""

import re

import pytest
import typer

from cgbench.cli.app import app
from tests.docs.pages import PAGES, ROOT, Shown, commands
from tests.support.command import cgbench

COMMANDS = [shown for page in PAGES for shown in commands(page)]
WITH_OUTPUT = sorted({shown for shown in COMMANDS if shown.output}, key=str)
SECONDS = re.compile(r"\bin \d+\.\d s\b")


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 40 and len(WITH_OUTPUT) > 8


@pytest.mark.parametrize("shown", COMMANDS, ids=str)
def test_a_command_is_parsed(shown: Shown) -> None:
    name, *words = shown.words
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, words, resilient_parsing=False)
    assert context.params


@pytest.mark.parametrize("shown", WITH_OUTPUT, ids=str)
def test_a_command_prints_what_stands_under_it(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``...`` leaves lines out, and a line may leave columns out at its end."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    done = cgbench(*shown.words)
    printed = iter([plain(line) for line in (done.stdout + done.stderr).splitlines()])
    for line in map(plain, shown.output):
        assert line == "..." or any(each.startswith(line) for each in printed), done


def plain(line: str) -> str:
    """A line with single blanks, without the seconds that it took."""
    return SECONDS.sub("in some s", " ".join(line.split()))
