"""What the driver reads from vLLM's objects, and what it starts the engine with."""

from types import SimpleNamespace
from typing import Any

import pytest

from cgbench.engines.drivers.messages import Start
from cgbench.engines.drivers.vllm_driver import captured_graphs, engine_arguments, model_runner
from tests.support.engines import small_graphs

SIZES = [1, 2, 4, 8, 16, 24, 32, 40]


def start(**changes: Any) -> Start:
    asked: dict[str, Any] = {
        "model": "m",
        "spec_tokens": [3],
        "max_num_seqs": 8,
        "max_num_batched_tokens": 8192,
        "max_model_len": 2048,
        "dtype": "bfloat16",
        "device": "cuda",
        "kv_bytes": 1 << 30,
    }
    return Start(**asked | changes)


def test_drafts_are_mtp_and_the_cache_is_given_in_bytes() -> None:
    made = engine_arguments(start(is_dummy=True, has_own_code=True))
    assert made["speculative_config"] == {"method": "mtp", "num_speculative_tokens": 3}
    assert made["kv_cache_memory_bytes"] == 1 << 30 and made["gpu_memory_utilization"] < 0.1
    assert made["load_format"] == "dummy" and made["trust_remote_code"] is True
    plain = engine_arguments(start(spec_tokens=[0], kv_bytes=None))
    assert not {"speculative_config", "load_format", "trust_remote_code"} & plain.keys()
    assert "gpu_memory_utilization" not in plain


def test_the_users_arguments_come_last_and_a_drafter_keeps_k() -> None:
    own = {"speculative_config": {"method": "eagle3", "model": "d"}, "max_num_seqs": 4}
    made = engine_arguments(start(arguments=own))
    assert made["speculative_config"] == {
        "method": "eagle3",
        "model": "d",
        "num_speculative_tokens": 3,
    }
    assert made["max_num_seqs"] == 4
    # The same flags serve k = 0, whose process has no drafter.
    assert "speculative_config" not in engine_arguments(start(spec_tokens=[0], arguments=own))


def test_runner_v2_has_graphs_of_every_phase() -> None:
    runner = small_graphs().runner_v2(SIZES, 3, 8, False)
    found = {each.phase: each for each in captured_graphs(runner, 3)}
    assert found["verify"].requests == [1, 2, 4, 6, 8]
    assert found["verify"].tokens == [4, 8, 16, 24, 32]
    assert found["draft_first"].requests == found["verify"].requests
    assert found["draft_rest"].requests == [1, 2, 4, 8] == found["draft_rest"].tokens
    assert found["verify"].piece_tokens == SIZES and found["draft_rest"].piece_tokens == []


def test_runner_v1_drafts_in_pieces_alone() -> None:
    runner = small_graphs().runner_v1(SIZES, 3, 8, False)
    found = {each.phase: each for each in captured_graphs(runner, 3)}
    assert found["verify"].requests == [1, 2, 4, 6, 8]
    for phase in ("draft_first", "draft_rest"):
        assert found[phase].requests == [] and found[phase].piece_tokens == SIZES


@pytest.mark.parametrize("make", ["runner_v1", "runner_v2"])
def test_without_drafts_there_is_one_phase(make: str) -> None:
    runner = getattr(small_graphs(), make)(SIZES, 0, 8, False)
    (only,) = captured_graphs(runner, 0)
    assert (only.phase, only.requests) == ("verify", [1, 2, 4, 8])


def test_an_engine_whose_core_runs_elsewhere_shows_no_graphs() -> None:
    apart = SimpleNamespace(engine_core=SimpleNamespace())
    assert model_runner(apart) is None
    assert captured_graphs(None, 3) == []
