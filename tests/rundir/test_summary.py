"""The statistics against tables worked out by hand."""

import math
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest

from cgbench.rundir.schema import CAPTURE, LATENCY, LATENCY_KEY
from cgbench.rundir.summary import (
    acceptance_frame,
    capture_frame,
    latency_frame,
    samples_frame,
    typed_frame,
)
from cgbench.words import Mode, Phase, Scope, Stage
from tests.support.example import make_cell, make_cost, make_group, make_samples

# Wall means 11, 22, 5.5 and 5.5 ms; lengths 1, 1 + (70 + 30) / 100 = 2, 1 and 2; 2 requests.
# Draft steps add up to 1.5, 4 and 2 ms: the median of the sums, not the sum of the medians.
TIMINGS = """
scope     k n p50 p90  p99   verify accept draft commit gap tpot tok_s      eager no_spec frac
eager     0 5 10  11.6 11.96 -      -      -     -      1   11   181.818182 1     1       -
eager     2 5 20  21.6 21.96 -      -      -     -      2   11   181.818182 1     1       -
iteration 0 5 5   5.8  5.98  -      -      -     -      0.5 5.5  363.636364 2     1       -
iteration 2 5 5   5.8  5.98  3      0.2    2     0.1    0.5 2.75 727.272727 4     2       0.25
phase     2 - -   -    -     -      -      -     -      -   -    -          -     -       -
"""
TIMING_COLUMNS = [
    "scope",
    "spec_tokens",
    "iterations",
    "iteration_p50_ms",
    "iteration_p90_ms",
    "iteration_p99_ms",
    "verify_p50_ms",
    "accept_p50_ms",
    "draft_p50_ms",
    "commit_p50_ms",
    "host_gap_p50_ms",
    "tpot_ms",
    "output_tok_per_s",
    "speedup_vs_eager",
    "speedup_vs_no_spec",
    "floor_frac",
]


def expected_timings() -> pd.DataFrame:
    frame = pd.read_csv(StringIO(TIMINGS), sep=r"\s+", na_values=["-"])
    frame.columns = pd.Index(TIMING_COLUMNS)
    return frame


def group_latency(batch_size: int = 2) -> pd.DataFrame:
    group = make_group(batch_size)
    return latency_frame(group.cells, samples_frame(group.samples))


def test_latency_timings() -> None:
    found = group_latency()[TIMING_COLUMNS]
    pd.testing.assert_frame_equal(found, expected_timings(), check_dtype=False)


def test_latency_acceptance() -> None:
    found = group_latency()
    assert found["mean_acceptance_length"].tolist()[:4] == [1, 2, 1, 2]
    assert math.isnan(found["mean_acceptance_length"].iloc[4])
    rates = found["acceptance_rate_per_pos"]
    assert rates.isna().tolist() == [True, False, True, False, True]
    assert rates[3] == "0.70;0.30"


def test_a_length_that_the_rule_states_is_what_a_token_takes_its_time_by() -> None:
    """k = 2 drew 2.00 in 100 rows; the counts stay as they were drawn."""
    group = make_group(2)
    cells = [replace(cell, acceptance="golden:qwen3.5-397b-on") for cell in group.cells]
    found = latency_frame(cells, samples_frame(group.samples))
    assert found["mean_acceptance_length"].tolist()[:4] == [1, 2.73, 1, 2.73]
    assert math.isnan(found["mean_acceptance_length"].iloc[4])
    drawn = group_latency()
    factors = [1, 2.73 / 2, 1, 2.73 / 2]
    for name, power in (("tpot_ms", -1), ("output_tok_per_s", 1)):
        values = drawn[name].tolist()[:4]
        changed = [value * by**power for value, by in zip(values, factors, strict=True)]
        assert found[name].tolist()[:4] == pytest.approx(changed)
    assert found["acceptance_rate_per_pos"].equals(drawn["acceptance_rate_per_pos"])


def test_latency_has_the_declared_columns() -> None:
    found = group_latency()
    assert [(name, str(dtype)) for name, dtype in found.dtypes.items()] == [
        (column.name, column.dtype) for column in LATENCY
    ]
    assert set(LATENCY_KEY) <= set(found.columns)


def test_larger_batch_gives_more_tokens() -> None:
    assert group_latency(4)["output_tok_per_s"][3] == pytest.approx(2 * 727.272727)


def test_without_an_eager_scope_there_is_no_speedup() -> None:
    cell = make_cell(Scope.PHASE, 0)
    samples = samples_frame(make_samples(cell, Stage.ITERATION, [1, 2, 3], gap_ms=0))
    row = latency_frame([cell], samples).iloc[0]
    assert math.isnan(row["speedup_vs_eager"])
    assert row["speedup_vs_no_spec"] == 1


def test_group_that_ran_out_of_memory_has_no_timings() -> None:
    cells = make_group(2).cells[4:]
    found = latency_frame(cells, samples_frame([]))
    assert found["status"].tolist() == ["oom"]
    assert found.loc[0, "iteration_p50_ms":"floor_frac"].isna().all()


def test_acceptance_counts() -> None:
    found = acceptance_frame(make_group(2).cells)
    assert found.to_numpy().tolist() == [
        ["eager", 2, 2, 1, 100, 70],
        ["eager", 2, 2, 2, 100, 30],
        ["iteration", 2, 2, 1, 100, 70],
        ["iteration", 2, 2, 2, 100, 30],
    ]


def test_capture_in_milliseconds() -> None:
    found = capture_frame([make_cost(Phase.ITERATION, nodes=None)], group_latency())
    assert [str(dtype) for dtype in found.dtypes] == [column.dtype for column in CAPTURE]
    row = found.iloc[0]
    assert row["num_tokens"] == 12
    steps = row["warmup_ms":"first_replay_ms"]
    assert steps.tolist() == pytest.approx([10, 15, 5, 2])
    assert row["nodes"] is pd.NA


def test_break_even_is_cost_over_gain() -> None:
    """(10 + 15 + 5) ms over 20 - 5 ms gained an iteration."""
    found = capture_frame([make_cost(Phase.ITERATION)], group_latency())
    assert found["break_even_replays"].tolist() == pytest.approx([2])


def phase_latency(batch_size: int, eager_ms: float, graph_ms: float) -> pd.DataFrame:
    eager = make_cell(Scope.EAGER, 2, batch_size)
    graph = make_cell(Scope.PHASE, 2, batch_size)
    samples = [
        *make_samples(eager, Stage.ITERATION, [eager_ms], gap_ms=0),
        *make_samples(graph, Stage.ITERATION, [graph_ms], gap_ms=0),
    ]
    return latency_frame([eager, graph], samples_frame(samples))


PHASES = (Phase.VERIFY, Phase.DRAFT_FIRST, Phase.DRAFT_REST)


def test_graphs_of_one_iteration_share_their_break_even() -> None:
    """Three graphs of 30 ms, 10 ms gained an iteration; the larger batch of the bucket counts."""
    latency = pd.concat([phase_latency(4, 20, 10), phase_latency(3, 20, 19)])
    found = capture_frame([make_cost(phase) for phase in PHASES], latency)
    assert found["break_even_replays"].tolist() == pytest.approx([9, 9, 9])


@pytest.mark.parametrize("graph_ms", [20, 25])
def test_no_break_even_without_a_gain(graph_ms: float) -> None:
    found = capture_frame([make_cost(Phase.VERIFY)], phase_latency(4, 20, graph_ms))
    assert found["break_even_replays"].isna().all()


def test_no_break_even_for_a_bucket_not_measured() -> None:
    costs = [make_cost(Phase.ITERATION, bucket=8), make_cost(Phase.ITERATION, spec_tokens=1)]
    assert capture_frame(costs, group_latency())["break_even_replays"].isna().all()
    nothing = typed_frame([], LATENCY)
    assert capture_frame(costs, nothing)["break_even_replays"].isna().all()


def test_eager_fallback_gains_nothing() -> None:
    """Rows of a graph scope that ran eager hold no bucket, so they pay back no graph."""
    cell = make_cell(Scope.PHASE, 2, mode=Mode.EAGER, bucket=None, padding_frac=None)
    eager = make_cell(Scope.EAGER, 2)
    samples = [
        *make_samples(eager, Stage.ITERATION, [20], gap_ms=0),
        *make_samples(cell, Stage.ITERATION, [10], gap_ms=0),
    ]
    latency = latency_frame([eager, cell], samples_frame(samples))
    assert latency["bucket"].isna().all()
    assert latency["speedup_vs_eager"].tolist() == [1, 2]
    assert capture_frame([make_cost(Phase.VERIFY)], latency)["break_even_replays"].isna().all()
