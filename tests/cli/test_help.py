"""``--help``: flags stand in panels, and texts are sentences."""

import pytest
import typer
from typer.core import TyperGroup, TyperOption

from cgbench.cli import panels
from cgbench.cli.app import app

COMMANDS = typer.main.get_command(app)
PANELS = {
    panels.MODEL,
    panels.HEAD,
    panels.GRAPHS,
    panels.WORKLOAD,
    panels.TIMING,
    panels.OUTPUT,
    panels.ENDPOINT,
}


def options_of(name: str) -> list[TyperOption]:
    assert isinstance(COMMANDS, TyperGroup)
    return [each for each in COMMANDS.commands[name].params if isinstance(each, TyperOption)]


@pytest.mark.parametrize("name", ["run", "audit"])
def test_every_flag_stands_in_a_panel(name: str) -> None:
    found = {option.name: option.rich_help_panel for option in options_of(name)}
    assert {flag for flag, panel in found.items() if panel not in PANELS} <= {"help"}
    assert len({*found.values()} & PANELS) >= 5


def test_no_help_text_has_a_semicolon() -> None:
    assert isinstance(COMMANDS, TyperGroup)
    texts = {
        f"{name} {option.name}": option.help or ""
        for name in COMMANDS.commands
        for option in options_of(name)
    }
    texts |= {name: each.help or "" for name, each in COMMANDS.commands.items()}
    assert [name for name, text in texts.items() if ";" in text] == []
