"""vLLM's graphs by phase, against a table that agrees with the engine's own code."""

import json
from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import PlanError
from cgbench.planning import PlanRequest, plan
from cgbench.planning.phases import PhasePlan, phases_of
from cgbench.planning.policies.vllm import decode_graphs
from cgbench.words import Phase

TABLE = json.loads(Path(__file__).with_name("vllm_phases.json").read_text())


def name(row: dict[str, Any]) -> str:
    return f"{row['max_num_seqs']}-k{row['spec_tokens']}-{len(row['tokens'])}"


def asked(row: dict[str, Any]) -> PlanRequest:
    return PlanRequest(
        row["spec_tokens"],
        row["max_num_seqs"],
        "vllm-0.33",
        max_num_batched_tokens=row.get("budget", 8192),
        blackwell=row.get("ceiling") == 1024,
        graph_sizes=tuple(row.get("listed", ())),
        graph_maximum=row.get("cap"),
        interactivity=row.get("interactivity", False),
    )


def in_phases(request: PlanRequest) -> PhasePlan:
    return phases_of(request, plan(request))


@pytest.mark.parametrize("row", TABLE, ids=name)
def test_every_phase_has_the_engines_graphs(row: dict[str, Any]) -> None:
    found = in_phases(asked(row))
    verify, rest = found.of(Phase.VERIFY), found.of(Phase.DRAFT_REST)
    assert list(found.mixed_tokens) == row["tokens"]
    assert verify is not None and list(verify.batch_sizes) == row["verify"]
    assert eager(verify) == row["verify_eager"]
    assert (rest is None) == ("draft_rest" not in row)
    if rest is not None:
        assert list(rest.batch_sizes) == row["draft_rest"]
        assert eager(rest) == row["draft_rest_eager"]
        assert found.of(Phase.DRAFT_FIRST).batch_sizes == verify.batch_sizes


def eager(phase: Any) -> list[int]:
    return [n for span in phase.eager_spans for n in range(span.first, span.last + 1)]


@pytest.mark.parametrize("row", TABLE, ids=name)
def test_graphs_of_a_list(row: dict[str, Any]) -> None:
    found = decode_graphs(asked(row), row.get("listed", row["tokens"]))
    assert list(found.verify) == row["verify"]
    assert list(found.later_drafts) == row.get("draft_rest", [])


def test_default_configurations_that_verify_in_a_graph_and_draft_eager() -> None:
    """563 of 1,792: S 1..256, k 2..8."""
    found = 0
    for most in range(1, 257):
        for k in range(2, 9):
            verify, _, rest = in_phases(PlanRequest(k, most, "vllm-0.33")).phases
            found += any(
                verify.bucket_for(n) and not rest.bucket_for(n) for n in range(1, most + 1)
            )
    assert found == 563


def test_mean_padding_is_larger_in_drafts() -> None:
    verify, _, rest = in_phases(PlanRequest(3, 64, "vllm-0.33")).phases
    assert verify.mean_padding == pytest.approx(0.024, abs=5e-4)
    assert rest.mean_padding == pytest.approx(0.11, abs=5e-3)


def test_a_ceiling_of_the_users_own_turns_the_decode_sizes_off() -> None:
    """The report: S = 6, k = 6, ceiling 42 gives graphs for 1..5 requests only."""
    found = in_phases(PlanRequest(6, 6, "vllm-0.33", graph_maximum=42))
    assert found.of(Phase.VERIFY).batch_sizes == (1, 2, 3, 4, 5)
    assert eager(found.of(Phase.VERIFY)) == [6]
    # 5 requests verify in a graph, and their drafts run without one.
    assert found.eager_batch_sizes == (5, 6)


def test_a_list_and_a_ceiling_that_disagree_are_refused() -> None:
    request = PlanRequest(3, 8, "vllm-0.33", graph_sizes=(4, 8, 16), graph_maximum=32)
    with pytest.raises(PlanError, match=r"max_cudagraph_capture_size 32 beside .* end at 16"):
        plan(request)
    agreed = PlanRequest(3, 8, "vllm-0.33", graph_sizes=(4, 8, 16), graph_maximum=16)
    assert plan(agreed).batch_sizes == (1, 2, 4)


RELEASES = {
    # S = 20, k = 2: 60 tokens are off the grid before 0.30.
    ("vllm-0.26", 20, 2): (1, 2, 3, 6, 8, 11, 14, 16, 19),
    ("vllm-0.28", 20, 2): (1, 2, 3, 6, 8, 11, 14, 16, 19),
    ("vllm-0.30", 20, 2): (1, 2, 3, 4, 6, 8, 11, 14, 16, 19, 20),
    ("vllm-0.33", 20, 2): (1, 2, 3, 4, 6, 8, 11, 14, 16, 19, 20),
}


@pytest.mark.parametrize("case", RELEASES)
def test_a_release_adds_the_decode_sizes_from_0_30_on(case: tuple[str, int, int]) -> None:
    policy, most, k = case
    assert plan(PlanRequest(k, most, policy)).batch_sizes == RELEASES[case]


def test_without_drafts_the_most_requests_are_added_from_0_31_on() -> None:
    assert plan(PlanRequest(0, 100, "vllm-0.30")).eager_batch_sizes == 4
    assert plan(PlanRequest(0, 100, "vllm-0.31")).eager_batch_sizes == 0


def test_the_blackwell_ceiling_is_there_from_0_28_on() -> None:
    ends = [
        plan(PlanRequest(3, 256, policy, blackwell=True)).eager_above
        for policy in ("vllm-0.26", "vllm-0.28")
    ]
    assert ends == [128, 256]


def test_tensor_parallelism_has_a_rule_up_to_0_31() -> None:
    assert plan(PlanRequest(1, 8, "vllm-0.31", tp_size=4)).batch_sizes == (2, 4, 8)
    assert plan(PlanRequest(1, 8, "vllm-0.33", tp_size=4)).batch_sizes[0] == 1
