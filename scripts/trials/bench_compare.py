"""How long ``cgbench compare`` takes, start to end, on two runs of over 200 cells, and ``report``.

    python scripts/trials/bench_compare.py
    python scripts/trials/bench_compare.py --report 10

``--report N`` times ``cgbench report`` on N such runs instead.

The runs are a recorded one, its batch sizes taken nine times over, times scattered by 0.2 %. Prints
a Markdown table with the best and the median of several starts. The best is what this machine can
do.

Python keeps the bytecode of what it has imported, unless ``PYTHONDONTWRITEBYTECODE`` is set. One
row is of starts that find it, as all but the first do. The other is of starts that compile
everything.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd

from cgbench.tables.markdown import markdown_table

REPEATS = 5
HEADINGS = ("command", "runs", "cells a run", "bytecode", "best [s]", "median [s]")
COPIES = 9
RECORDED = Path(__file__).parents[2] / "results" / "h200" / "default-k3"


def multiplied(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of every batch size again under other batch sizes, in buckets of those."""
    names = [name for name in ("batch_size", "bucket") if name in frame]
    copies = [
        frame.assign(**{name: frame[name].map(partial(shifted, 100 * i)) for name in names})
        for i in range(COPIES)
    ]
    return pd.concat(copies, ignore_index=True)


def shifted(by: int, cell: str | int) -> str | int:
    """A number in a cell, or nothing."""
    return cell if cell == "" else int(cell) + by


def write_run(path: Path, seed: int) -> int:
    """A run directory at ``path``; returns its number of cells."""
    path.mkdir()
    for name in ("run.json", "capture.csv"):
        (path / name).write_bytes((RECORDED / name).read_bytes())
    for name in ("latency.csv", "acceptance.csv"):
        frame = multiplied(pd.read_csv(RECORDED / name, dtype=str, keep_default_na=False))
        frame.to_csv(path / name, index=False)
    samples = multiplied(pd.read_parquet(RECORDED / "samples.parquet"))
    noise = np.exp(np.random.default_rng(seed).normal(size=len(samples)) * 0.002)
    for name in ("gpu_s", "wall_s"):
        samples[name] *= noise
    samples.to_parquet(path / "samples.parquet", index=False)
    return len(pd.read_csv(path / "latency.csv"))


def environments(folder: Path) -> dict[str, dict[str, str]]:
    """The environment of a start that finds bytecode, and of one that finds none."""
    shared = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    kept = {**shared, "PYTHONPYCACHEPREFIX": str(folder / "kept")}
    none = {**shared, "PYTHONPYCACHEPREFIX": str(folder / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
    return {"kept": kept, "none": none}


def timed(words: list[str], environment: dict[str, str]) -> float:
    """The seconds of ``cgbench WORDS`` from its start to its end."""
    start = perf_counter()
    command = [sys.executable, "-m", "cgbench", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = perf_counter() - start
    # A comparison that finds something ends with another code than 0.
    assert "exit code" in done.stdout or done.returncode == 0, done.stderr
    return seconds


def seconds_of(words: list[str], folder: Path, repeats: int) -> dict[str, list[float]]:
    """The seconds of every start, in turn because a machine's speed drifts."""
    found = environments(folder)
    timed(words, found["kept"])
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, environment in found.items():
            seconds[name].append(timed(words, environment))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=int, default=0, metavar="N", help="runs on one page")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="starts to time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"run{number}" for number in range(given.report or 2)]
        cells = [write_run(path, seed) for seed, path in enumerate(paths)]
        command = "report" if given.report else "compare"
        flags = ["-o", str(folder / "page.html")] if given.report else []
        found = seconds_of([command, *map(str, paths), *flags], folder, given.repeats)
    facts = (command, str(len(paths)), str(cells[0]))
    rows = [
        (*facts, name, f"{min(seconds):.2f}", f"{median(seconds):.2f}")
        for name, seconds in found.items()
    ]
    print(markdown_table(HEADINGS, rows, left=("command", "bytecode")))


if __name__ == "__main__":
    main()
