"""What is printed where the terminal is narrow, or its encoding: no half number, no exception."""

import io
from pathlib import Path

import pytest
from rich.console import Console

import cgbench.cli.console as console_module
from cgbench.cli import inspect as inspect_module
from cgbench.cli import run_output
from cgbench.cli.run_output import show
from cgbench.rundir.store import RunDirectory
from tests.support.command import cgbench, python
from tests.support.runs import Made

COMMANDS = ("", "run ", "plan ", "audit ", "compare ", "inspect ", "peers ", "prompts ", "env ")

EVERY_HELP = """
import sys
from cgbench.cli.app import main
for command in sys.argv[1:]:
    sys.argv = ["cgbench", *command.split(), "--help"]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0, command
"""


@pytest.fixture(params=[60, 20])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of so many characters shows."""
    shown = io.StringIO()
    to = Console(file=shown, width=request.param, force_terminal=True, color_system=None)
    for module in (console_module, inspect_module, run_output):
        monkeypatch.setattr(module, "console", lambda *, stderr=False: to)
    return shown


def test_a_runs_table_keeps_every_row_whole(narrow: io.StringIO, tmp_path: Path) -> None:
    run = RunDirectory.open(Made().write(tmp_path / "run"))
    show(run, thin=False, as_json=False, explain=False, wide=True)
    text = narrow.getvalue()
    assert "…" not in text
    assert "left out at this width: bucket [req], +/-, p99 [ms]" in text
    rows = [line.split() for line in text.splitlines() if line.startswith((" eager", " iter"))]
    assert [row[1:3] for row in rows[:4]] == [["0", "1"], ["0", "1"], ["2", "1"], ["2", "1"]]
    assert {row[-1] for row in rows} == {"ok"}


def test_a_heads_tensors_keep_their_names(narrow: io.StringIO, tiny: Path) -> None:
    assert cgbench("inspect", tiny, "--tensors").code == 0
    assert "…" not in narrow.getvalue()
    assert "model.mtp_layers.0.self_attn.q_proj.weight" in narrow.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """At 80 columns typer shortens words with an ellipsis."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = python("-c", EVERY_HELP, *COMMANDS)
    assert (done.code, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"Usage: cgbench {command}" in done.stdout


def test_a_name_that_the_encoding_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    file = tmp_path / "Γ.txt"
    file.write_text("3\n")
    done = python("-m", "cgbench", "plan", "--max-num-seqs", "4", "--concurrency", file)
    assert (done.code, done.stderr) == (0, "")
    assert f"k = 3, max_num_seqs 4, {tmp_path}/?.txt" in done.stdout


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "-"), ("utf-8", "⠋")])
def test_a_spinner_is_of_what_the_encoding_has(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    to = Console(file=file, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(console_module, "console", lambda *, stderr=False: to)
    with console_module.working("load"):
        pass
    file.seek(0)
    assert f"{shown} load" in file.read()
