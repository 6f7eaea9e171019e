"""How long planning takes: the command, start to end, and the largest plan that is asked of it.

    python scripts/trials/bench_plan.py

Prints the best and the median of several runs; the best is what this machine can do.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

from cgbench.planning import PlanRequest, plan

REPEATS = 10
COMMAND = "plan --spec-tokens 3 --max-num-seqs 256 --policy all"
LARGEST = PlanRequest(3, 1024, "optimal", max_graphs=64)


def run_command() -> None:
    words = [sys.executable, "-m", "cgbench", *COMMAND.split()]
    subprocess.run(words, check=True, capture_output=True)


def seconds_of(work: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(REPEATS):
        start = perf_counter()
        work()
        found.append(perf_counter() - start)
    return found


def report(name: str, seconds: list[float]) -> None:
    print(f"{name}: best {min(seconds):.3f} s, median {median(seconds):.3f} s")


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    report(f"cgbench {COMMAND}", seconds_of(run_command))
    report("optimal, 1024 requests, 64 graphs", seconds_of(lambda: plan(LARGEST)))


if __name__ == "__main__":
    main()
