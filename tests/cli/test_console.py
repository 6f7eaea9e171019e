"""The commands' progress on a terminal and where it is piped."""

import io

import pytest
from rich.console import Console

import cgbench.cli.console as console_module
from cgbench.cli.console import TerminalProgress


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """What is on stderr after a call has reported."""
    file, progress = io.StringIO(), TerminalProgress()
    to = Console(file=file, width=80, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(console_module, "console", lambda *, stderr=False: to)
    with progress.working("load the model"):
        progress.say("a note")
    with progress.bar("audit", 3) as bar:
        bar.at("equality")
        bar.advance()
        progress.log("a log")
    return file.getvalue()


def test_a_terminal_shows_bars_in_place_of_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert {word for word in ("load the model", "equality", "1/3") if word in text} == {
        *("load the model", "equality", "1/3")
    }
    assert "a note" in text and "a log" not in text


def test_a_pipe_gets_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False) == "a note\na log\n"
