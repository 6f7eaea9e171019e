"""One made-up run: two batch sizes, numbers chosen so that every statistic is plain to see."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cgbench.engine.graph_cost import GraphCost
from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import Cell, Sample, TokenRow
from cgbench.words import Mode, Phase, Scope, Stage, Status


@dataclass(frozen=True)
class Group:
    cells: list[Cell]
    samples: list[Sample]
    tokens: list[TokenRow]


def make_cell(scope: Scope, spec_tokens: int, batch_size: int = 2, **changes: Any) -> Cell:
    is_graph, bucket = scope is not Scope.EAGER, max(batch_size, 4)
    cell = Cell(
        model="tiny (random weights)",
        head="own" if spec_tokens else "none",
        device="cuda",
        dtype="bfloat16",
        attention="triton",
        compile="off",
        acceptance="greedy",
        tp_size=1,
        mode=Mode.GRAPH if is_graph else Mode.EAGER,
        scope=scope,
        spec_tokens=spec_tokens,
        batch_size=batch_size,
        bucket=bucket if is_graph else None,
        padding_frac=(bucket - batch_size) / bucket if is_graph else None,
        context_len=256,
        status=Status.OK,
        tokens_sha256="c0ffee",
        peak_memory_bytes=4096,
        floor_ms=None,
        num_accepted_per_pos=(70, 30)[:spec_tokens],
        num_drafted=100,
    )
    return replace(cell, **changes)


def make_samples(
    cell: Cell, stage: Stage, gpu_ms: Sequence[float], gap_ms: float | None = None
) -> list[Sample]:
    """``gap_ms`` is what wall time has over GPU time; without it there is no wall time."""
    return [
        Sample(
            cell.scope,
            cell.spec_tokens,
            cell.batch_size,
            cell.mode,
            block=0,
            iteration=index,
            stage=stage,
            gpu_s=milliseconds / 1e3,
            wall_s=None if gap_ms is None else (milliseconds + gap_ms) / 1e3,
        )
        for index, milliseconds in enumerate(gpu_ms)
    ]


def make_tokens(cell: Cell) -> list[TokenRow]:
    return [
        TokenRow(cell.scope, cell.mode, cell.spec_tokens, cell.batch_size, request, [1, 2], [3])
        for request in range(cell.batch_size)
    ]


def make_group(batch_size: int) -> Group:
    """Eager and whole-iteration graphs at k = 0 and 2, and phase graphs that ran out of memory."""
    eager_0 = make_cell(Scope.EAGER, 0, batch_size)
    eager_2 = make_cell(Scope.EAGER, 2, batch_size)
    graph_0 = make_cell(Scope.ITERATION, 0, batch_size)
    graph_2 = make_cell(Scope.ITERATION, 2, batch_size, floor_ms=1.25)
    failed = make_cell(
        Scope.PHASE,
        2,
        batch_size,
        status=Status.OOM,
        tokens_sha256=None,
        peak_memory_bytes=None,
        num_accepted_per_pos=(),
        num_drafted=0,
    )
    samples = [
        *make_samples(eager_0, Stage.ITERATION, [8, 9, 10, 11, 12], gap_ms=1),
        *make_samples(eager_2, Stage.ITERATION, [18, 19, 20, 21, 22], gap_ms=2),
        *make_samples(graph_0, Stage.ITERATION, [4, 4.5, 5, 5.5, 6], gap_ms=0.5),
        *make_samples(graph_2, Stage.ITERATION, [4, 4.5, 5, 5.5, 6], gap_ms=0.5),
        *make_samples(graph_2, Stage.VERIFY, [2, 3, 4]),
        *make_samples(graph_2, Stage.ACCEPT, [0.1, 0.2, 0.3]),
        *make_samples(graph_2, Stage.draft(1), [1, 1, 1]),
        *make_samples(graph_2, Stage.draft(2), [0.5, 3, 1]),
        *make_samples(graph_2, Stage.COMMIT, [0.1, 0.1, 0.2]),
    ]
    cells = [eager_0, eager_2, graph_0, graph_2, failed]
    return Group(cells, samples, [row for cell in cells[:4] for row in make_tokens(cell)])


def make_cost(phase: Phase, spec_tokens: int = 2, bucket: int = 4, **changes: Any) -> GraphCost:
    cost = GraphCost(
        phase=phase,
        spec_tokens=spec_tokens,
        bucket=bucket,
        num_tokens=bucket * (spec_tokens + 1),
        warmup_s=0.010,
        capture_s=0.015,
        instantiate_s=0.005,
        first_replay_s=0.002,
        pool_bytes=1024,
        driver_bytes=512,
        nodes=100,
    )
    return replace(cost, **changes)


def make_record(**arguments: Any) -> RunRecord:
    return RunRecord(
        cgbench_version="0.1.0",
        created_utc="2026-11-22T12:00:00+00:00",
        environment={"python": "3.11.7", "gpu": "NVIDIA H200", "driver": None},
        arguments={
            "model": "preset:tiny",
            "spec_tokens": [0, 2],
            "batch_sizes": [2, 4],
            "head": None,
            "seed": 0,
            "max_new_tokens": 64,
            "ignore_eos": True,
            **arguments,
        },
        model={"label": "tiny (random weights)", "fingerprint": "f0"},
        workload={"version": 1, "num_prompts": 4, "sha256": "w0", "context_band_tokens": 32},
        plans=[{"spec_tokens": 2, "batch_sizes": [4]}],
        warnings=["513 tokens are not a multiple of 3"],
    )
