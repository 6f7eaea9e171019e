"""What of the tensor parallel check a CPU can run: its flags and its cycles."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check_tp(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/trials/check_tp.py", "--device", "cpu", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("flag", "known"),
    [
        ("--only", "mimo-7b-tp1,mimo-7b-tp2,mimo-7b-tp2-whole,qwen3-32b-tp1,"),
        ("--parts", "audit,table,cycles"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_runs(
    tmp_path: Path, flag: str, known: str
) -> None:
    done = check_tp("--output", tmp_path / "tp", "--parts", "table", flag, "mimo-7b-tp3")
    assert done.returncode == 2
    assert f"error: {flag} mimo-7b-tp3: unknown. Choose of {known}" in done.stderr
    assert not (tmp_path / "tp").exists()


def test_cycles_end_and_are_told(tmp_path: Path) -> None:
    done = check_tp("--output", tmp_path, "--parts", "cycles", "--cycles", "1")
    assert done.returncode == 0, done.stderr
    assert "1 cycles of start, capture, run and exit at tp 2" in done.stdout
    assert (tmp_path / "cycles" / "01" / "latency.md").exists()
    assert (tmp_path / "cycles.md").read_text() in done.stdout
