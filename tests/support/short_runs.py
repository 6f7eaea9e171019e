"""Runs in forked processes take as few blocks as runs in a test's own process do."""

from pathlib import Path
from typing import Any

from tests.support.fixtures import FEW_BLOCKS


def take_few_blocks() -> None:
    """In this process from now on, as the fixture ``few_blocks`` has it."""
    from cgbench.measure import group, rounds, stop_rule

    for module in (stop_rule, rounds, group):
        module.MIN_BLOCKS = FEW_BLOCKS  # type: ignore[attr-defined]
    group.STAGE_ITERATIONS = FEW_BLOCKS


def measure_few(*args: Any, **options: Any) -> Path:
    """``cgbench.door.run.measure``, of few blocks."""
    from cgbench.door.run import measure

    take_few_blocks()
    return measure(*args, **options)


def cgbench_few(words: list[str], planted: list[dict[str, Any]]) -> None:
    """``_cgbench`` of the gate's trial, of few blocks."""
    from gate.recording import _cgbench

    take_few_blocks()
    _cgbench(words, planted)
