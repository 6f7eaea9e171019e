"""What of the tensor parallel check a CPU can run: its flags and its cycles."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "trials" / "check_tp.py"


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
    monkeypatch.setattr("sys.argv", ["check_tp.py", *words, flag, "mimo-7b-tp3"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    assert f"error: {flag} mimo-7b-tp3: unknown. Choose of {known}" in capsys.readouterr().err
    assert not (tmp_path / "tp").exists()


def test_cycles_end_and_are_told(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--output", tmp_path, "--parts", "cycles", "--cycles", "1")
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 cycles of start, capture, run and exit at tp 2" in done.stdout
    assert (tmp_path / "cycles" / "01" / "latency.md").exists()
    assert (tmp_path / "cycles.md").read_text() in done.stdout
