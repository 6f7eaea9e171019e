"""A row's figures come from its rounds."""

import numpy as np

from cgbench.engines.peer_rows import Result, Round
from cgbench.statistics import CONFIDENCE, blocks_estimate


def test_the_figures_of_rounds_that_are_alike() -> None:
    row = Result("iteration", [Round(seconds=0.5, steps=10, tokens=20.0)] * 3)
    assert row.step_ms() == (50.0, 0.0)
    assert row.tokens_per_s() == (40.0, 0.0)
    assert row.tokens_per_step() == 2.0


def test_an_interval_over_rounds_that_follow_each_other_is_the_gates() -> None:
    seconds = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07]
    row = Result("static", [Round(each, 1000, 1) for each in seconds])
    assert row.step_ms()[1] == blocks_estimate(np.array(seconds)).half_width(CONFIDENCE)
