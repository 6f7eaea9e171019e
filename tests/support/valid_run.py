"""A small run directory with every file and every field that a reader looks at."""

from dataclasses import replace
from pathlib import Path

from cgbench.floor.account import Account, FloorLine
from cgbench.rundir.block_schema import Block
from cgbench.rundir.record import RunRecord
from cgbench.rundir.store import RunDirectory
from cgbench.tables.latency import latency_markdown
from cgbench.words import Phase, Scope, Stage
from tests.support.example import make_cost, make_group, make_record

BATCH_SIZE = 2


def write_valid_run(path: Path) -> Path:
    directory = RunDirectory.create(path, full_record())
    directory.write_capture([make_cost(Phase.ITERATION), make_cost(Phase.VERIFY)])
    group = make_group(BATCH_SIZE)
    directory.write_group(group.cells, group.samples, group.tokens, [make_block()])
    directory.finish(latency_markdown)
    return path


def make_block() -> Block:
    return Block(
        scope=Scope.ITERATION,
        spec_tokens=2,
        batch_size=BATCH_SIZE,
        process=0,
        block=0,
        discarded=None,
        iterations=5,
        iteration_p50_s=0.005,
        mean_context_len=260.5,
        sm_clock_mhz=1980,
        memory_clock_mhz=3201,
        temperature_c=40,
        power_w=350.5,
        throttle_reasons="sw_power_cap",
        other_processes=0,
    )


def full_record() -> RunRecord:
    """``make_record`` with all that a run on several GPUs, once resumed, has besides."""
    record = make_record(max_time=30.0, scopes=["eager", "iteration"], num_prompts=None, tp=2)
    line = FloorLine(
        stage=Stage.VERIFY,
        what="matrix",
        count=2,
        num_bytes=1e6,
        flops=1e9,
        bound_by="bytes",
        seconds=1e-3,
    )
    account = Account(
        scope=Scope.ITERATION,
        spec_tokens=2,
        batch_size=BATCH_SIZE,
        context_len=260.5,
        lines=(line,),
    )
    share = {"scope": "iteration", "spec_tokens": 2, "batch_size": BATCH_SIZE, "frac": 0.1}
    return replace(
        record,
        model=record.model
        | {"weight_bytes": 4096, "kv_bytes": 64, "tensor_parallel": {"collectives": [share]}},
        resumed=[{"utc": "2026-11-22T13:00:00+00:00", "kept_batch_sizes": [4]}],
        capture={"role": "mixed", "seconds": 0.5},
        floor={
            "limits": {"read_bytes_per_s": 4e12, "flops_per_s": 8e14},
            "accounts": [account.to_dict()],
        },
        seconds={"run": 60.0, "audit": 1.0},
    )
