"""Option texts: each engine's own unit, and text that its parser takes."""

import json
import shlex

import pytest
import yaml

from cgbench.errors import BadInputError
from cgbench.planning import CapturePlan, PlanRequest, plan
from cgbench.planning.flags import ENGINES, flags_for


def planned(policy: str = "explicit") -> CapturePlan:
    return plan(PlanRequest(3, 8, policy, (1, 2, 8) if policy == "explicit" else ()))


TEXTS = {
    "fastdeploy": "--graph-optimization-config '{\"cudagraph_capture_sizes\": [1, 2, 8]}'",
    "fastdeploy-2.4": "--graph-optimization-config '{\"cudagraph_capture_sizes\": [4, 8, 32]}'",
    "vllm": "--compilation-config '{\"cudagraph_capture_sizes\": [4, 8, 32]}'",
    "sglang": "--cuda-graph-bs 1 2 8",
    "tensorrt-llm": "cuda_graph_config:\n  enable_padding: true\n  batch_sizes: [1, 2, 8]",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_text(engine: str) -> None:
    assert flags_for(engine, planned()) == TEXTS[engine]


@pytest.mark.parametrize("engine", ["fastdeploy", "fastdeploy-2.4", "vllm"])
def test_json_survives_the_shell(engine: str) -> None:
    _, value = shlex.split(flags_for(engine, planned()))
    assert list(json.loads(value)) == ["cudagraph_capture_sizes"]


def test_yaml_is_what_the_engine_reads() -> None:
    found = yaml.safe_load(flags_for("tensorrt-llm", planned()))
    assert found == {"cuda_graph_config": {"enable_padding": True, "batch_sizes": [1, 2, 8]}}


def test_a_plan_of_fastdeploy_2_4_is_stated_in_that_versions_tokens() -> None:
    assert flags_for("fastdeploy", planned("fastdeploy-2.4")).endswith("[4, 8, 16, 32]}'")


def test_unknown_engine() -> None:
    with pytest.raises(BadInputError, match="--flags x: unknown; choose one of fastdeploy"):
        flags_for("x", planned())


def test_no_buckets() -> None:
    nothing = plan(PlanRequest(3, 8, "optimal", max_graphs=0))
    with pytest.raises(BadInputError, match="optimal captures nothing"):
        flags_for("vllm", nothing)
