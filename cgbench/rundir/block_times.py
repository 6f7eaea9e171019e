"""Reduce a timed block of a cell to one row, which the gate and a thin run directory read."""

import pandas as pd

from cgbench.rundir.summary import BLOCK, CELL, of_stage, stage_seconds
from cgbench.words import Stage, StageKind

BLOCKS = [*CELL, *BLOCK]

WALL = "wall"
"""The one column that is no stage."""


def block_times(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the times of every block in seconds, indexed by scope, spec_tokens, batch_size,
    process and block.

    ``iteration`` is the median GPU time. ``wall`` is the mean wall time, because TPOT is a mean.
    ``host_gap`` is the median of wall minus GPU time. The others are medians of a stage of the
    instrumented pass, with the draft steps of one iteration summed. A time is NaN if a block has
    none.

    A thin directory's samples are one a block, with the gap as a stage of its own. They come out as
    they went in.
    """
    timed = of_stage(samples, Stage.ITERATION)
    by_block = timed.assign(gap_s=timed["wall_s"] - timed["gpu_s"]).groupby(BLOCKS)
    whole = pd.DataFrame(
        {
            StageKind.ITERATION.value: by_block["gpu_s"].median(),
            WALL: by_block["wall_s"].mean(),
            StageKind.HOST_GAP.value: by_block["gap_s"].median(),
        }
    )
    stages = stage_seconds(samples, BLOCKS)
    return whole.drop(columns=stages.columns, errors="ignore").join(stages, how="outer")
