"""Option texts: each engine's own unit, and text that its parser takes."""

import json
import shlex

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cgbench.errors import BadInputError
from cgbench.planning import POLICIES, CapturePlan, Costs, Curve, PlanRequest, plan
from cgbench.planning.flags import ENGINES, flag_warnings, flags_for, option_of
from cgbench.planning.launch_lines import read_launch
from cgbench.planning.policies.vllm import decode_graphs


def planned(policy: str = "explicit") -> CapturePlan:
    return plan(PlanRequest(3, 8, policy, (1, 2, 8) if policy == "explicit" else ()))


TEXTS = {
    "fastdeploy": "--graph-optimization-config '{\"cudagraph_capture_sizes\": [1, 2, 8]}'",
    "fastdeploy-2.4": "--graph-optimization-config '{\"cudagraph_capture_sizes\": [4, 8, 32]}'",
    "vllm": "--compilation-config '{\"cudagraph_capture_sizes\": [1, 2, 4, 8, 32]}'",
    "sglang": "--cuda-graph-bs-decode 1 2 8",
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


def test_sglang_gets_the_option_that_its_policys_release_reads() -> None:
    """0.5.23 refuses --cuda-graph-bs, which begins two of its options. The text is read back."""
    found = plan(PlanRequest(3, 12, "sglang-0.5.23"))
    option = option_of("sglang", PlanRequest(3, 12, "sglang-0.5.23"), found)
    line = f"python -m sglang.launch_server --max-running-requests 12 {option.text}"
    launch = read_launch(line, None, None)
    assert (launch.warnings, option.warnings) == ((), ())
    assert launch.request.graph_sizes == found.batch_sizes


def test_a_plan_of_fastdeploy_2_4_is_stated_in_that_versions_tokens() -> None:
    assert flags_for("fastdeploy", planned("fastdeploy-2.4")).endswith("[4, 8, 16, 32]}'")


def test_unknown_engine() -> None:
    with pytest.raises(BadInputError, match=r"--flags x: unknown. Choose one of fastdeploy"):
        flags_for("x", planned())


def test_vllm_without_drafts_gets_the_plans_sizes_alone() -> None:
    found = plan(PlanRequest(0, 8, "explicit", (1, 2, 8)))
    assert listed(flags_for("vllm", found)) == [1, 2, 8]


def listed(text: str) -> list[int]:
    """The sizes that vLLM reads from the option."""
    _, value = shlex.split(text)
    return json.loads(value)["cudagraph_capture_sizes"]


@pytest.mark.parametrize("policy", sorted(POLICIES.keys() - {"explicit"}))
@settings(max_examples=20)
@given(k=st.integers(0, 8), most=st.integers(1, 300).map(lambda half: 2 * half))
def test_vllm_captures_every_bucket_for_verify_and_for_later_drafts(
    policy: str, k: int, most: int
) -> None:
    """The sizes are planned back, with a token budget that holds a full batch."""
    request = PlanRequest(k, most, policy, max_graphs=9, max_num_batched_tokens=most * (k + 1))
    found = plan(request)
    captured = decode_graphs(request, listed(flags_for("vllm", found)))
    assert set(found.batch_sizes) <= set(captured.verify)
    assert k < 2 or set(found.batch_sizes) <= set(captured.later_drafts)
    assert [*flag_warnings("vllm", request, found)] == []


def test_sizes_of_n_times_k_plus_1_alone_would_leave_drafts_eager() -> None:
    """What the union is for: S = 20, k = 2 as the engine itself lists it."""
    request = PlanRequest(2, 20, "exact")
    alone = decode_graphs(request, [3 * n for n in range(1, 21)])
    assert alone.verify == tuple(range(1, 21))
    assert max(alone.later_drafts) == 18


def test_sizes_over_the_token_budget_are_named() -> None:
    """4 tokens each: 2048 requests are the budget, 4096 are dropped by vLLM."""
    request = PlanRequest(3, 4096, "explicit", (1, 2048, 4096))
    [warning] = flag_warnings("vllm", request, plan(request))
    assert warning == (
        "vLLM drops sizes over --max-num-batched-tokens 8192: no graph for 4096 requests. Raise it"
    )
    assert [*flag_warnings("sglang", request, plan(request))] == []
    # max_num_tokens of TensorRT-LLM drops 4096 too, and puts the largest that fits in its place.
    [warning] = flag_warnings("tensorrt-llm", request, plan(request))
    assert warning.endswith("by its own limits: no graph for 4096 requests")


def test_fastdeploy_2_4_drops_sizes_over_512_tokens() -> None:
    request = PlanRequest(3, 256, "exact")
    [warning] = option_of("fastdeploy-2.4", request, plan(request)).warnings
    assert warning.startswith("fastdeploy-2.4 drops sizes of this list") and " 129, 130," in warning
    assert option_of("fastdeploy", request, plan(request)).warnings == ()


def test_fastdeploy_2_4_gets_no_option_that_it_refuses() -> None:
    """15 requests of 3 tokens are an odd count, whatever is listed."""
    request = PlanRequest(2, 15, "scaled")
    with pytest.raises(BadInputError, match=r"--flags fastdeploy-2\.4: .* refuses an odd token"):
        option_of("fastdeploy-2.4", request, plan(request))
    assert option_of("fastdeploy", request, plan(request)).warnings == ()


def test_fastdeploy_has_at_most_256_requests() -> None:
    request = PlanRequest(1, 300, "scaled")
    assert option_of("fastdeploy", request, plan(request)).warnings == (
        "FastDeploy refuses to start with --max-num-seqs above 256",
    )


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("k", [0, 1, 3, 8])
def test_an_option_leaves_no_batch_size_without_its_graph(engine: str, k: int) -> None:
    """Each engine's list is planned back by its own rule. Up to 512 tokens nothing is dropped."""
    for most in (1, 2, 6, 20, 512 // (k + 1) // 2 * 2):
        request = PlanRequest(k, most, "scaled")
        if k % 2 == 0 and k and most % 2 and engine == "fastdeploy-2.4":
            continue  # An odd token count.
        found = option_of(engine, request, plan(request)).warnings
        assert [line for line in found if "no graph" in line] == []


def test_no_buckets() -> None:
    dear = Costs("ms", graph=Curve(((1, 9.0),)), eager=Curve(((1, 1.0),)))
    nothing = plan(PlanRequest(3, 8, "optimal", costs=dear))
    with pytest.raises(BadInputError, match="optimal captures nothing"):
        flags_for("vllm", nothing)
