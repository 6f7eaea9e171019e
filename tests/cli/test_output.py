"""What is printed where the terminal is narrow: too wide a line, never half a number or a name."""

import io
from pathlib import Path

import pytest
from rich.console import Console

import cgbench.cli.console as console_module
from cgbench.cli import inspect as inspect_module
from cgbench.cli import job
from tests.cli.command import cgbench
from tests.report.compare.runs import Made


@pytest.fixture(params=[60, 20])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of so many characters shows."""
    shown = io.StringIO()
    to = Console(file=shown, width=request.param, force_terminal=True, color_system=None)
    for module in (console_module, inspect_module, job):
        monkeypatch.setattr(module, "console", lambda *, stderr=False: to)
    return shown


def test_a_runs_table_keeps_every_row_whole(narrow: io.StringIO, tmp_path: Path) -> None:
    run = Made().write(tmp_path / "run")
    job.show(run, thin=False, as_json=False, explain=False)
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
