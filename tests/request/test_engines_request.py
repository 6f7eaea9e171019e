"""A comparison's request of engines: what its flags mean, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import BadInputError
from cgbench.planning import MAX_SPEC_TOKENS
from cgbench.request.engines_request import EnginesRequest
from cgbench.request.parts import CaptureRequest, WorkloadRequest
from cgbench.words import Scope


def test_a_request_is_recorded_and_read_back() -> None:
    asked = EnginesRequest(
        engine=("vllm", "cgbench"), engine_arg=("vllm:enforce_eager=true",), rounds=3
    )
    assert EnginesRequest.from_record(asked.to_record()) == asked


def test_arguments_are_json_or_text_and_go_to_their_engine(tmp_path: Path) -> None:
    asked = EnginesRequest(
        engine=("vllm", "sglang", "vllm"),
        engine_arg=(
            'vllm:compilation_config={"cudagraph_capture_sizes": [1, 4]}',
            "vllm:enforce_eager=true",
            "sglang:attention_backend=fa3",
            "vllm:note=a=b",
        ),
        engine_env=("vllm:VLLM_USE_V2_MODEL_RUNNER=1",),
        engine_site=(f"sglang={tmp_path}",),
    )
    assert asked.engines == ("vllm", "sglang")
    found = asked.settings()
    assert found["vllm"].arguments == {
        "compilation_config": {"cudagraph_capture_sizes": [1, 4]},
        "enforce_eager": True,
        "note": "a=b",
    }
    assert found["vllm"].variables == {"VLLM_USE_V2_MODEL_RUNNER": "1"}
    assert found["sglang"].arguments == {"attention_backend": "fa3"}
    assert found["sglang"].site == tmp_path and found["vllm"].site is None


def test_this_tools_own_run_has_the_room_and_one_graph_an_iteration() -> None:
    asked = EnginesRequest(
        capture=CaptureRequest(spec_tokens=(0, 3), max_num_seqs=16),
        workload=WorkloadRequest(batch_sizes=(1, 8), context_len=100),
    )
    run = asked.run
    assert run.capture.scopes == (Scope.ITERATION,) and run.capture.max_num_seqs == 16
    assert run.workload.max_new_tokens >= asked.room and run.workload.acceptance == "greedy"
    # Every draft kept in every step of a block that begins at the band's end stays in the room.
    assert asked.room >= asked.band + 4 * (8 + asked.steps)


def bad(words: str, **values: Any) -> Any:
    return pytest.param(values, words, id=words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        bad("--engine tensorrt: unknown. Choose of cgbench,vllm", engine=("tensorrt",)),
        bad("--engine: is empty", engine=()),
        bad("--engine-arg x=1: must be ENGINE:NAME=VALUE", engine_arg=("x=1",)),
        bad("--engine-arg vllm:x: must be ENGINE:NAME=VALUE", engine_arg=("vllm:x",)),
        bad("--engine-env sglang:A=1: --engine sglang is not", engine_env=("sglang:A=1",)),
        bad("--engine-python vllm: must be ENGINE=PATH", engine_python=("vllm",)),
        bad("--engine-site vllm=/nowhere: there is no /nowhere", engine_site=("vllm=/nowhere",)),
        bad("--start-timeout 0: must be above 0", start_timeout=0),
        bad("--step-timeout nan: must be above 0", step_timeout=float("nan")),
        bad("--rounds 0", rounds=0),
        bad(
            f"--spec-tokens {MAX_SPEC_TOKENS + 1}",
            capture=CaptureRequest(spec_tokens=(MAX_SPEC_TOKENS + 1,)),
        ),
        bad(
            "--batch-sizes 8: over --max-num-seqs 4",
            capture=CaptureRequest(max_num_seqs=4),
            workload=WorkloadRequest(batch_sizes=(8,)),
        ),
    ],
)
def test_what_cannot_be_used_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        EnginesRequest(**values)
