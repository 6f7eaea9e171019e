"""What of the tensor parallel check a CPU can run: its cycles."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_cycles_end_and_are_told(tmp_path: Path) -> None:
    words = ("--output", tmp_path, "--device", "cpu", "--parts", "cycles", "--cycles", "1")
    done = subprocess.run(
        [sys.executable, "scripts/check_tp.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 cycles of start, capture, run and exit at tp 2" in done.stdout
    assert (tmp_path / "cycles" / "01" / "latency.md").exists()
    assert (tmp_path / "cycles.md").read_text() in done.stdout
