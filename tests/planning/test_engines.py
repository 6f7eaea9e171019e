"""What only some engines have: ceilings, token budgets, tensor parallelism, padding off."""

from dataclasses import replace

import pytest

from cgbench.errors import PlanError
from cgbench.planning import Bucket, Concurrency, Costs, PlanRequest, plan
from cgbench.planning.expected import expected_cost, weights_of
from tests.support.plans import planned


def test_vllm_reports_what_its_ceiling_cuts() -> None:
    assert planned("vllm-0.33", 3, 256).warnings == (
        "truncated: a full batch needs 1024 tokens, the list stops at 512. "
        "--max-cudagraph-capture-size 1024 raises it",
        "batch sizes 129 to 256 (128 of 256) have no graph: eager",
    )


def test_the_blackwell_ceiling_is_twice_as_high_from_vllm_0_33() -> None:
    new = plan(PlanRequest(3, 256, "vllm-0.33", blackwell=True))
    assert (new.eager_above, new.warnings) == (256, ())
    old = plan(PlanRequest(3, 256, "vllm-0.18", blackwell=True))
    assert old.batch_sizes == planned("vllm-0.18", 3, 256).batch_sizes
    assert old.warnings[-1] == "--blackwell changes nothing: vllm-0.18 has no rule for it"


def test_off_stride() -> None:
    assert planned("vllm-0.18", 0, 100).warnings == (
        "off-stride: --max-num-seqs 100 (100 tokens) falls between two listed sizes, "
        "the largest decode graph holds 96. List it yourself",
        "batch sizes 97 to 100 (4 of 100) have no graph: eager",
    )


def test_one_batch_size_alone_is_eager() -> None:
    """33 requests are 99 tokens, between 96 and 105."""
    assert planned("vllm-0.18", 2, 33).warnings[-1] == "batch size 33 (1 of 33) has no graph: eager"


def test_over_the_token_budget() -> None:
    """100 tokens of budget are the ceiling, and in 0.33 a size: 25 requests of 4 tokens."""
    found = plan(PlanRequest(3, 32, "vllm-0.33", max_num_batched_tokens=100))
    assert found.capture_tokens[-2:] == (96, 100)
    assert found.eager_above == 25
    assert (
        "over the token budget: a full batch needs 128 tokens, --max-num-batched-tokens 100 "
        "lets 25 requests run"
    ) in found.warnings
    old = plan(PlanRequest(3, 32, "vllm-0.18", max_num_batched_tokens=100))
    assert old.eager_above == 24


def test_vllm_refuses_a_budget_below_one_request() -> None:
    with pytest.raises(PlanError, match="no capture size that is a multiple of 8 up to 4 tokens"):
        plan(PlanRequest(7, 4, "vllm-0.18", max_num_batched_tokens=5))


def test_vllm_sequence_parallelism() -> None:
    """Multiples of 4 in the grid to 32, then of max(4, 2) = 4."""
    found = plan(PlanRequest(1, 8, "vllm-0.18", tp_size=4))
    assert found.capture_tokens == (4, 8, 16, 24, 32)
    assert found.batch_sizes == (2, 4, 8)


def test_vllm_sequence_parallelism_refuses_what_does_not_divide() -> None:
    with pytest.raises(PlanError, match=r"--tp 4 with --spec-tokens 2: .* 4 and 3 must divide"):
        plan(PlanRequest(2, 8, "vllm-0.18", tp_size=4))


def test_vllm_0_33_has_no_rule_for_tensor_parallelism() -> None:
    found = plan(PlanRequest(2, 20, "vllm-0.33", tp_size=4))
    assert found.capture_tokens == planned("vllm-0.33", 2, 20).capture_tokens
    assert found.warnings == ("--tp changes nothing: vllm-0.33 has no rule for it",)


def test_vllm_0_33_without_drafts_appends_the_most_requests_where_they_fit() -> None:
    """97 to 100 run in the graph of 100; 513 are over the ceiling of 512 tokens."""
    found = plan(PlanRequest(0, 100, "vllm-0.33"))
    assert found.bucket_for(97) == found.bucket_for(100) == Bucket(100, 100)
    assert (found.eager_batch_sizes, found.warnings) == (0, ())
    weights, costs = weights_of(PlanRequest(0, 100)), Costs.in_tokens(1)
    assert expected_cost(found, weights, costs) == pytest.approx(53.71)
    assert plan(PlanRequest(0, 513, "vllm-0.33")).eager_batch_sizes == 1


@pytest.mark.parametrize(
    ("most", "tp_size", "warns"),
    [(256, 1, False), (257, 1, True), (4096, 1, True), (512, 4, False), (513, 4, True)],
)
def test_sglang_names_its_default_maximum_where_the_plan_is_over_it(
    most: int, tp_size: int, warns: bool
) -> None:
    found = plan(PlanRequest(3, most, "sglang-0.5.23", tp_size=tp_size))
    said = [line for line in found.warnings if "SGLang's default maximum" in line]
    assert len(said) == warns
    assert not warns or f"--cuda-graph-max-bs-decode {most}" in said[0]


@pytest.mark.parametrize("pad", [True, False])
def test_tensorrt_llm_names_its_default_maximum_where_the_plan_is_over_it(pad: bool) -> None:
    request = PlanRequest(3, 256, "tensorrt-llm-1.3", pad=pad)
    assert any("default list ends at 128 requests" in line for line in plan(request).warnings)
    within = plan(replace(request, max_batch_size=128))
    assert not any("default" in line for line in within.warnings)


def test_sglang_with_gathered_batches() -> None:
    """At k = 1, 4 GPUs: even batch sizes. 10 requests count up to 12, which cuts a longer list."""
    found = plan(PlanRequest(1, 10, "sglang-0.5.23", tp_size=4))
    assert found.batch_sizes == (2, 4, 6, 8, 10)
    cut = plan(PlanRequest(1, 10, "sglang-0.5.23", tp_size=4, graph_maximum=64))
    assert cut.batch_sizes == (2, 4, 6, 8, 10, 12)


def test_fastdeploy_sequence_parallel_moe() -> None:
    assert plan(PlanRequest(0, 10, "fastdeploy-2.5", tp_size=4)).capture_tokens == (8, 4)
    # Below tp requests the engine switches the mode, and with it the rule, off.
    assert plan(PlanRequest(0, 3, "fastdeploy-2.5", tp_size=4)).capture_tokens == (3, 2, 1)


@pytest.mark.parametrize(
    ("policy", "mode"),
    [("fastdeploy-2.4", "sequence-parallel MoE"), ("vllm-0.18", "sequence-parallelism pass")],
)
def test_the_plan_says_in_which_mode_tp_has_a_rule(policy: str, mode: str) -> None:
    assert not any("--tp" in line for line in plan(PlanRequest(1, 8, policy)).warnings)
    (said,) = (line for line in plan(PlanRequest(1, 8, policy, tp_size=2)).warnings if mode in line)
    assert "its plan is that of --tp 1" in said


def test_tensorrt_llm_without_padding_has_holes_below_its_largest_graph() -> None:
    found = plan(PlanRequest(0, 130, "tensorrt-llm-1.3", pad=False))
    assert found.batch_sizes == (*range(1, 33), 64, 128, 130)
    assert found.bucket_for(33) is None
    assert found.eager_batch_sizes == 31 + 63 + 1
    assert found.mean_padding == 0
    assert [(span.first, span.last) for span in found.eager_spans] == [
        (33, 63),
        (65, 127),
        (129, 129),
    ]


def test_tensorrt_llm_drops_what_does_not_fit_its_token_budget() -> None:
    """100 // 4 = 25 requests fit; padded, that is a size."""
    padded = plan(PlanRequest(3, 64, "tensorrt-llm-1.3", max_num_batched_tokens=100))
    assert padded.batch_sizes == (1, 2, 4, 8, 16, 24, 25)
    bare = plan(PlanRequest(3, 64, "tensorrt-llm-1.3", max_num_batched_tokens=100, pad=False))
    assert bare.batch_sizes == tuple(range(1, 26))


def test_nano_vllm_has_no_eager_to_fall_back_on() -> None:
    warnings = planned("nano-vllm", 1, 100).warnings
    assert warnings[0].startswith("nano-vllm has no speculative decoding")
    assert "nano-vllm does not fall back to eager there: looking up a graph fails" in warnings


@pytest.mark.parametrize(
    ("special", "flag"),
    [
        ({"tp_size": 2}, "--tp"),
        ({"pad": False}, "--no-padding"),
        ({"blackwell": True}, "--blackwell"),
        ({"max_num_batched_tokens": 4096}, "--max-num-batched-tokens"),
    ],
)
def test_a_flag_without_a_rule_is_said_to_change_nothing(
    special: dict[str, int], flag: str
) -> None:
    found = plan(PlanRequest(3, 8, "scaled", **special))
    assert found.batch_sizes == planned("scaled", 3, 8).batch_sizes
    assert found.warnings == (f"{flag} changes nothing: scaled has no rule for it",)


def test_requests_are_hashable() -> None:
    workload = Concurrency.parse("geometric:8")
    costs = Costs.in_tokens(4)
    one, other = (PlanRequest(3, 8, concurrency=workload, costs=costs) for _ in range(2))
    assert len({one, other}) == 1
