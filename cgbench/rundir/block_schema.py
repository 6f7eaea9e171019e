"""Declare what is kept of a timed block: the columns of ``blocks.csv``, and what telemetry reads.

Written against the standard library alone, as ``schema`` is.
"""

from typing import NamedTuple

from cgbench.rundir.schema import DRAFTS, FROM_ONE, REQUESTS, SECONDS, Column
from cgbench.words import Scope

BLOCKS = (
    Column("scope", "string", "what was asked", words=tuple(scope.value for scope in Scope)),
    Column("spec_tokens", "int64", "k", within=DRAFTS),
    Column("batch_size", "int64", "requests", within=REQUESTS),
    Column("process", "int64", "which of --processes"),
    Column("block", "int64", "interleaved round of the measurement"),
    Column("discarded", "string", "why it does not count, empty where it does"),
    Column("iterations", "int64", "timed iterations", within=FROM_ONE),
    Column(
        "iteration_p50_s",
        "float64",
        "their median GPU time (wall time on CPU)",
        within=SECONDS,
        filled=True,
    ),
    Column("mean_context_len", "float64", "mean KV rows per request over them", filled=True),
    Column("sm_clock_mhz", "Int64", "just after the block, as all that follows"),
    Column("memory_clock_mhz", "Int64", "clock of the device's memory"),
    Column("temperature_c", "Int64", "of the GPU"),
    Column("power_w", "float64", "drawn by the board"),
    Column("throttle_reasons", "string", "before or after the block, ';' apart"),
    Column("other_processes", "Int64", "on the GPU, that were not there when the run began"),
    Column(
        "experts_read",
        "float64",
        "mean distinct experts per expert layer in one verify of the block. Counted for block 0",
        added=True,
    ),
)


class Block(NamedTuple):
    """A ``Block`` is one row of ``blocks.csv``: one timed block of one cell, whether it counts or
    not.
    """

    scope: Scope
    spec_tokens: int
    batch_size: int
    process: int
    block: int
    discarded: str | None
    iterations: int
    iteration_p50_s: float
    mean_context_len: float
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttle_reasons: str | None
    other_processes: int | None
    experts_read: float | None = None
