"""Recorded H200 runs of results/, each opened once."""

from functools import cache
from pathlib import Path

from cgbench.rundir.store import RunDirectory

H200 = Path(__file__).parents[2] / "results" / "h200"


@cache
def recorded(name: str) -> RunDirectory:
    return RunDirectory.open(H200 / name)
