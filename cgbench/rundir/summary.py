"""Compute every statistic that a run directory holds from raw samples.

All of it can be computed again from ``samples.parquet`` and ``acceptance.csv``.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from math import isfinite, nan
from typing import Any

import numpy as np
import pandas as pd

from cgbench.engine.graph_cost import GraphCost
from cgbench.request.acceptance_lengths import stated_length
from cgbench.rundir.record_parts import Spread, TelemetryFacts, Told
from cgbench.rundir.schema import ACCEPTANCE, CAPTURE, LATENCY, SAMPLES, Cell, Column, Sample
from cgbench.statistics import CONFIDENCE, Estimate, blocks_estimate, processes_estimate
from cgbench.words import Mode, Phase, Scope, Stage

CELL = ["scope", "spec_tokens", "batch_size"]
BLOCK = ["process", "block"]
GRAPHS = ["scope", "spec_tokens", "bucket"]


def typed_frame(rows: Iterable[Any] | pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return rows (tuples, or mappings that may lack columns) as a frame of the declared dtypes."""
    frame = pd.DataFrame(rows, columns=[column.name for column in columns])
    # To cast a column takes longer than to see that it has its dtype.
    held = zip(columns, map(str, frame.dtypes), strict=True)
    others = {column.name: column.dtype for column, dtype in held if dtype != column.dtype}
    return frame.astype(others) if others else frame.copy()


def with_defaults(frame: pd.DataFrame, missing: Sequence[Column]) -> pd.DataFrame:
    """Return ``frame`` with the columns that it was written without, each row at the column's
    default.
    """
    for column in missing:
        value = pd.NA if column.default is None and column.dtype != "float64" else column.default
        frame[column.name] = pd.Series(value, index=frame.index, dtype=column.dtype)
    return frame


def samples_frame(samples: Sequence[Sample]) -> pd.DataFrame:
    """Return raw samples, in seconds, with the ``SAMPLES`` columns."""
    return typed_frame([{**each._asdict(), "stage": str(each.stage)} for each in samples], SAMPLES)


def of_stage(samples: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """Return the samples of one stage."""
    return samples[samples["stage"] == str(stage)]


def acceptance_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return raw acceptance counts, one row a draft position, with the ``ACCEPTANCE`` columns."""
    rows = [
        (cell.scope, cell.spec_tokens, cell.batch_size, position, cell.num_drafted, accepted)
        for cell in cells
        for position, accepted in enumerate(cell.num_accepted_per_pos, start=1)
    ]
    return typed_frame(rows, ACCEPTANCE)


def latency_frame(cells: Sequence[Cell], samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell, in the order given, with the ``LATENCY`` columns.

    ``cells`` must hold every scope and k of their batch sizes, because the speed-ups are ratios
    between rows. A cell without samples keeps its facts and has no timings.
    """
    return with_timings(_facts(cells), samples)


def with_timings(facts: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Return ``facts`` with all the columns that are computed from samples, as ``latency_frame``
    does.

    ``facts`` has a row a cell, with the columns that no sample gives.
    """
    timings = [_iteration_times(samples), _stage_medians(samples)]
    stale = [name for timing in timings for name in timing if name in facts]
    frame = facts.drop(columns=stale)
    for timing in timings:
        frame = frame.join(timing, on=CELL)
    length, wall_s = frame["mean_acceptance_length"], frame["mean_wall_s"]
    frame["tpot_ms"] = wall_s / length * 1e3
    frame["output_tok_per_s"] = frame["batch_size"] * length / wall_s
    frame["floor_frac"] = frame["floor_ms"].astype("float64") / frame["iteration_p50_ms"]
    frame["speedup_vs_eager"] = _vs_eager(frame)
    frame["speedup_vs_no_spec"] = _vs_no_spec(frame)
    return typed_frame(frame, LATENCY)


def _facts(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return what the latency table shows of cells without their samples."""
    lengths = pd.Series([_mean_length(cell) for cell in cells], dtype="float64")
    return pd.DataFrame([asdict(cell) for cell in cells]).assign(
        scope=[cell.scope.value for cell in cells],
        mean_acceptance_length=lengths,
        acceptance_rate_per_pos=pd.Series([_rates(cell) for cell in cells], dtype="object"),
    )


def _rates(cell: Cell) -> str | None:
    drafted = cell.num_drafted
    rates = [f"{count / drafted:.2f}" for count in cell.num_accepted_per_pos if drafted]
    return ";".join(rates) or None


def _mean_length(cell: Cell) -> float | None:
    """Return the length that the rule states, if it states one, and otherwise the measured one.

    The draws of a short run scatter around the stated length, and times a token are wanted at the
    length itself.
    """
    if not cell.num_drafted:
        return None
    stated = stated_length(cell.acceptance, cell.spec_tokens)
    return 1 + sum(cell.num_accepted_per_pos) / cell.num_drafted if stated is None else stated


def _iteration_times(samples: pd.DataFrame) -> pd.DataFrame:
    """Return statistics of the timed pass, one row a cell, from the blocks that count."""
    timed = of_stage(samples, Stage.ITERATION)
    gap_s = timed["wall_s"] - timed["gpu_s"]
    by_cell = timed.assign(gap_s=gap_s).groupby(CELL)
    gpu_s = by_cell["gpu_s"]
    blocks = timed.groupby([*CELL, *BLOCK])["gpu_s"].median()
    return pd.DataFrame(
        {
            "iterations": gpu_s.count(),
            "iteration_p50_ms": gpu_s.quantile(0.50) * 1e3,
            "iteration_p90_ms": gpu_s.quantile(0.90) * 1e3,
            "iteration_p99_ms": gpu_s.quantile(0.99) * 1e3,
            "host_gap_p50_ms": by_cell["gap_s"].median() * 1e3,
            "mean_wall_s": by_cell["wall_s"].mean(),
            "blocks": blocks.groupby(CELL).count(),
            "half_width_frac": _half_widths(np.log(blocks)),
        }
    )


def _half_widths(log_medians: pd.Series) -> pd.Series:
    """Return the half-width of each cell, from one value a block.

    If the run has several processes, the process is the unit of evidence. This holds for a cell too
    that only one of them timed.
    """
    by_process = log_medians.index.get_level_values("process").nunique() > 1
    if by_process:
        log_medians = log_medians.groupby([*CELL, "process"]).median()
    estimate = processes_estimate if by_process else blocks_estimate
    return log_medians.groupby(CELL).agg(lambda values: _half_width(estimate(values.to_numpy())))


def _half_width(estimate: Estimate) -> float:
    half_width = estimate.half_width(CONFIDENCE)
    return half_width if isfinite(half_width) else nan


def _stage_medians(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the median of each stage of the instrumented pass, one row a cell."""
    return (stage_seconds(samples, CELL) * 1e3).rename(columns="{}_p50_ms".format)


def stage_seconds(samples: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the median seconds of each stage of the instrumented pass, a column each, by the
    columns ``by``.

    ``CELL`` is among them. The draft steps of one iteration are summed.
    """
    staged = samples[samples["stage"] != str(Stage.ITERATION)]
    kinds = {name: Stage.parse(name).kind.value for name in staged["stage"].unique()}
    staged = staged.assign(stage=staged["stage"].map(kinds).astype("string"))
    per_iteration = staged.groupby([*CELL, *BLOCK, "iteration", "stage"])["gpu_s"].sum()
    return per_iteration.groupby([*by, "stage"]).median().unstack("stage")


def _vs_eager(frame: pd.DataFrame) -> pd.Series:
    eager = frame[frame["scope"] == Scope.EAGER.value]
    base = _looked_up(frame, eager, "iteration_p50_ms", ["spec_tokens", "batch_size"])
    return base / frame["iteration_p50_ms"]


def _vs_no_spec(frame: pd.DataFrame) -> pd.Series:
    no_spec = frame[frame["spec_tokens"] == 0]
    base = _looked_up(frame, no_spec, "output_tok_per_s", ["scope", "batch_size"])
    return frame["output_tok_per_s"] / base


def _looked_up(frame: pd.DataFrame, base: pd.DataFrame, column: str, on: list[str]) -> pd.Series:
    """Return a value of ``column`` for each row of ``frame``, from the row of ``base`` that agrees
    in ``on``.
    """
    return frame[on].join(base.set_index(on)[column], on=on)[column]


def capture_frame(costs: Sequence[GraphCost], latency: pd.DataFrame) -> pd.DataFrame:
    """Return one row a graph, with the ``CAPTURE`` columns."""
    rows = pd.DataFrame(costs, columns=[each.name for each in fields(GraphCost)])
    for step in ("warmup", "capture", "instantiate", "first_replay"):
        rows[f"{step}_ms"] = rows[f"{step}_s"] * 1e3
    return with_break_even(typed_frame(rows, CAPTURE), latency)


def with_break_even(capture: pd.DataFrame, latency: pd.DataFrame) -> pd.DataFrame:
    """Return ``capture`` with ``break_even_replays`` worked out again from ``latency``.

    The cost is the warm-up, capture and instantiation of all graphs that make up one iteration of a
    (scope, k, bucket). It is divided by what one iteration through them gains against eager
    (medians). So the three graphs of a phase-scope iteration carry one number.

    The gain is that of the largest batch size measured in the bucket. The result is empty if none
    was measured, or if nothing is gained.
    """
    graphs = with_costs(capture)
    cost_ms = graphs.groupby(GRAPHS)["cost_ms"].transform("sum")
    gain_ms = graphs[GRAPHS].join(_gains(latency), on=GRAPHS)["gain_ms"]
    return capture.assign(break_even_replays=cost_ms / gain_ms.where(gain_ms > 0))


def with_costs(capture: pd.DataFrame) -> pd.DataFrame:
    """Return ``capture`` with each graph's scope, and ``cost_ms``: warm-up, capture and
    instantiation.
    """
    scopes = {phase.value: phase.scope.value for phase in Phase}
    return capture.assign(
        scope=capture["phase"].map(scopes).astype("string"),
        cost_ms=capture[["warmup_ms", "capture_ms", "instantiate_ms"]].sum(axis=1),
    )


def _gains(latency: pd.DataFrame) -> pd.Series:
    """Return the milliseconds that an iteration gains over eager, by scope, k and bucket."""
    replayed = latency[latency["mode"] == Mode.GRAPH.value].sort_values("batch_size")
    p50_ms = replayed["iteration_p50_ms"]
    gain_ms = p50_ms * replayed["speedup_vs_eager"] - p50_ms
    return replayed.assign(gain_ms=gain_ms).groupby(GRAPHS)["gain_ms"].last()


def telemetry_summary(blocks: pd.DataFrame) -> TelemetryFacts:
    """Return what ``run.json`` holds of the GPU over all timed blocks.

    It has min, median and max of clocks, temperature and power. It also has what held the clocks
    back, and the discarded blocks by reason. A part that the GPU did not report is left out.
    """
    facts = TelemetryFacts()
    told: tuple[Told, ...] = ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w")
    for name in told:
        if blocks[name].notna().any():
            facts[name] = _spread(blocks[name].dropna().astype("float64"))
    if facts:
        reasons = blocks["throttle_reasons"].dropna().str.split(";").explode()
        facts["throttle_reasons"] = sorted(reasons.unique())
    others = blocks["other_processes"].dropna()
    if len(others):
        facts["other_processes"] = int(others.max())
    facts["blocks"] = len(blocks)
    facts["discarded"] = dict(Counter(blocks["discarded"].dropna().tolist()).most_common())
    return facts


def _spread(values: pd.Series) -> Spread:
    return {"min": values.min(), "median": values.median(), "max": values.max()}
