"""What of the tensor parallel check a CPU can run: its flags and its cycles."""

import runpy
import signal
from pathlib import Path

import pytest

from tests.support.forkserver import fork_context
from tests.support.short_runs import measure_few

SCRIPT = Path(__file__).parents[2] / "scripts" / "trials" / "check_tp.py"


def check_tp(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The script's exit code, run in this process as a command would run it."""
    monkeypatch.setattr("sys.argv", ["check_tp.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(
    ("flag", "known"),
    [
        ("--only", "mimo-7b-tp1,mimo-7b-tp2,mimo-7b-tp2-whole,qwen3-32b-tp1,"),
        ("--parts", "audit,table,cycles"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_runs(
    tmp_path: Path,
    flag: str,
    known: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--device", "cpu", "--output", str(tmp_path / "tp"), "--parts", "table")
    assert check_tp(monkeypatch, *words, flag, "mimo-7b-tp3") == 2
    assert f"error: {flag} mimo-7b-tp3: unknown. Choose of {known}" in capsys.readouterr().err
    assert not (tmp_path / "tp").exists()


def test_cycles_end_and_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_context()
    monkeypatch.setattr("cgbench.door.run.measure", measure_few)
    before = signal.getsignal(signal.SIGALRM)
    words = ("--output", str(tmp_path), "--parts", "cycles", "--cycles", "1")
    try:
        assert check_tp(monkeypatch, "--device", "cpu", *words) == 0
    finally:
        signal.signal(signal.SIGALRM, before)
    printed = capsys.readouterr().out
    assert "1 cycles of start, capture, run and exit at tp 2" in printed
    assert (tmp_path / "cycles" / "01" / "latency.md").exists()
    assert (tmp_path / "cycles.md").read_text() in printed
