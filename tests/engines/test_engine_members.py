"""Processes and waves: one k a process where an engine must, as many at once as memory holds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cgbench.engines.engine_members import Member, members, turns_of, waves
from cgbench.engines.engine_models import ServedModel
from cgbench.engines.engine_runs import EngineRun, SharedModel
from cgbench.request.engines_request import EnginesRequest
from cgbench.request.parts import CaptureRequest, WorkloadRequest
from cgbench.words import Routing
from cgbench.workload.load import random_workload
from tests.support.engines import Scripted, cell_of

GB = 10**9


def run_of(engine: str, **changes: Any) -> EngineRun:
    request = EnginesRequest(
        engine=(engine,),
        engine_arg=changes.pop("engine_arg", ()),
        capture=CaptureRequest(spec_tokens=(0, 3)),
        workload=WorkloadRequest(batch_sizes=(1, 64), context_len=1024),
    )
    model = SharedModel(
        label="m",
        head_label="h",
        is_random=True,
        dtype="bfloat16",
        device="cuda",
        routing=Routing.BALANCED,
        served=changes.pop("served", ServedModel("m", "f")),
        workload=random_workload(100, 2, 4, 0),
        weight_bytes=15 * GB,
        head_bytes=GB,
        kv_bytes_per_token=151_552,
        state_bytes_per_slot=0,
        **changes,
    )
    return EngineRun(request.settings()[engine], request, model, Path("x"))


def names(run: EngineRun) -> list[str]:
    return [member.name for member in members(run)]


def test_vllm_has_a_process_for_each_k_and_this_tool_has_one() -> None:
    assert names(run_of("vllm")) == ["vllm k=0", "vllm k=3"]
    assert names(run_of("cgbench")) == ["cgbench k=0,3"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_model_without_a_head_for_engines_is_measured_without_drafts(engine: str) -> None:
    run = run_of(engine, served=ServedModel("m", "f", no_drafts="it has no head"))
    assert names(run) == [f"{engine} k=0"] and run.num_k == 1
    assert run.omissions == [f"{engine} k=3: not measured: it has no head"]
    assert names(run_of("cgbench", served=run.model.served)) == ["cgbench k=0,3"]


def test_transformers_has_no_drafts() -> None:
    run = run_of("transformers")
    assert names(run) == ["transformers k=0"] and run.failures == []


def test_processes_share_a_wave_as_far_as_memory_goes() -> None:
    every = [*members(run_of("vllm")), *members(run_of("cgbench"))]
    need = [member.needed_bytes for member in every]
    # Weights, KV of 65 slots of about 1,300 tokens with slack, and a workspace.
    assert all(30 * GB < each < 45 * GB for each in need)
    assert [len(wave) for wave in waves(every, sum(need), one_at_a_time=False)] == [3]
    assert [len(wave) for wave in waves(every, sum(need) - 1, one_at_a_time=False)] == [2, 1]
    assert [len(wave) for wave in waves(every, 0, one_at_a_time=False)] == [1, 1, 1]
    assert [len(wave) for wave in waves(every, sum(need), one_at_a_time=True)] == [1, 1, 1]
    line = turns_of(waves(every, sum(need) - 1, one_at_a_time=False))
    assert line == "vllm k=0 and vllm k=3 in turn, then cgbench k=0,3"


def test_a_cache_that_the_user_sizes_is_counted_as_stated() -> None:
    (given, *_) = members(run_of("vllm", engine_arg=(f"vllm:kv_cache_memory_bytes={GB}",)))
    assert given.needed_bytes == 15 * GB + GB + (5 << 30)


def test_waves_keep_every_process() -> None:
    every: list[Member] = list(members(run_of("vllm")))
    assert [member for wave in waves(every, 10, one_at_a_time=False) for member in wave] == every


def started(run: EngineRun) -> EngineRun:
    own = {"attention": "a", "compile": "off", "acceptance": "greedy"}
    run.started = {k: SimpleNamespace(facts=own) for k in (0, 3)}  # type: ignore[misc]
    return run


@pytest.mark.parametrize(("engine", "quant"), [("vllm", "engine"), ("cgbench", "w8a16")])
def test_a_row_states_what_of_the_model_is_in_its_key(engine: str, quant: str) -> None:
    """Weights in FP8, three modules, and drafts of a part of the vocabulary."""
    facts = {"quant": "w8a16", "mtp_modules": 3, "draft_vocab": "32"}
    run = started(run_of(engine, **facts))
    rows = [run._cell(cell_of(Scripted(engine, []), k)) for k in (0, 3)]
    assert [(each.quant, each.mtp_modules, each.draft_vocab) for each in rows] == [
        (quant, 1, "target"),
        (quant, 3, "32"),
    ]
    plain = started(run_of("vllm"))._cell(cell_of(Scripted("vllm", []), 3))
    assert (plain.quant, plain.mtp_modules, plain.draft_vocab) == ("none", 1, "target")
