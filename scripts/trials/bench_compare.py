"""How long ``cgbench compare`` takes, start to end, on two runs of over 200 cells, and ``report``.

    python scripts/trials/bench_compare.py
    python scripts/trials/bench_compare.py --report 10

``--report N`` times ``cgbench report`` on N such runs instead.

The runs are a recorded one, its batch sizes taken nine times over, times scattered by 0.2 %. Prints
the best and the median of several runs; the best is what this machine can do.
"""

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd

REPEATS = 10
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


def seconds_of(base: Path, new: Path) -> float:
    """One comparison, in a process of its own."""
    seconds, out = timed("compare", str(base), str(new))
    assert "exit code" in out
    return seconds


def seconds_of_report(paths: list[Path], page: Path) -> float:
    """One page of all these runs, in a process of its own."""
    seconds, _ = timed("report", *map(str, paths), "-o", str(page))
    assert page.stat().st_size > 0
    page.unlink()
    return seconds


def timed(*words: str) -> tuple[float, str]:
    """The seconds of ``cgbench WORDS`` from its start to its end, and what it printed."""
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cgbench", *words], capture_output=True, text=True, check=False
    )
    seconds = perf_counter() - start
    assert done.stdout or done.returncode == 0, done.stderr
    return seconds, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=int, default=0, metavar="N", help="runs on one page")
    reported = parser.parse_args().report
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"run{number}" for number in range(reported or 2)]
        cells = [write_run(path, seed) for seed, path in enumerate(paths)]
        if reported:
            page = Path(folder) / "report.html"
            seconds = [seconds_of_report(paths, page) for _ in range(REPEATS)]
        else:
            seconds = [seconds_of(*paths) for _ in range(REPEATS)]
    print(f"{cells[0]} cells: best {min(seconds):.2f} s, median {median(seconds):.2f} s")


if __name__ == "__main__":
    main()
