"""What an engine captured beside its plan: both lists, phase by phase, from the same flags."""

import pytest

from cgbench.planning.captured import beside_plan, policy_of, request_of
from cgbench.words import Phase


@pytest.mark.parametrize(
    ("engine", "version", "policy"),
    [
        ("vllm", "0.26.0", "vllm-0.26"),
        ("vllm", "0.26.1rc2+cu130", "vllm-0.26"),
        ("vllm", "0.27.0", "vllm-0.26"),
        ("vllm", "0.33.0", "vllm-0.33"),
        ("vllm", "1.0.0", "vllm-0.33"),
        ("vllm", "0.9.2", None),
        ("vllm", "dev", None),
        ("sglang", "0.5.23", "sglang-0.5.23"),
        ("transformers", "5.17.0", None),
    ],
)
def test_the_policy_is_of_the_newest_release_that_is_not_above(
    engine: str, version: str, policy: str | None
) -> None:
    assert policy_of(engine, version) == policy


def graphs(phase: str, requests: list[int]) -> dict[str, object]:
    return {"phase": phase, "requests": requests, "piece_tokens": [], "spec_tokens": 2}


def test_a_difference_has_both_lists() -> None:
    """S = 20, k = 2: drafts 2..k have no graph above 16 requests, by vLLM 0.26's own list."""
    request = request_of("vllm-0.26", 2, 20, 8192, {})
    plan = beside_plan(request, [])
    verify, _, rest = ([*each.planned] for each in plan)
    assert max(rest) == 16
    same = beside_plan(
        request,
        [graphs("verify", verify), graphs("draft_first", verify), graphs("draft_rest", rest)],
    )
    assert [each.differs for each in same] == [False] * 3
    assert [each.finding for each in same] == [None] * 3
    (*_, other) = beside_plan(request, [graphs("draft_rest", [])])
    assert other.phase is Phase.DRAFT_REST and other.captured == ()
    assert other.finding is not None
    assert "k=2, draft_rest: graphs planned at 1, 2, 4, 8, 16 requests" in other.finding
    assert "captured at no number of requests" in other.finding


def test_flags_of_the_user_decide_the_plan() -> None:
    listed = {"compilation_config": {"cudagraph_capture_sizes": [1, 3, 12]}}
    request = request_of("vllm-0.26", 2, 20, 8192, listed)
    assert request.graph_sizes == (1, 3, 12)
    (verify, *_) = beside_plan(request, [])
    assert verify.planned == (1, 4)
    eager = request_of("vllm-0.26", 2, 20, 8192, {"enforce_eager": True})
    assert all(each.planned == () for each in beside_plan(eager, []))
    pieces = {"compilation_config": {"cudagraph_mode": "PIECEWISE"}, "max_num_seqs": 4}
    request = request_of("vllm-0.26", 2, 20, 8192, pieces)
    assert request.max_batch_size == 4
    assert all(each.planned == () for each in beside_plan(request, []))


def test_a_phase_that_only_the_engine_has_is_shown() -> None:
    request = request_of("vllm-0.26", 0, 8, 8192, {})
    found = beside_plan(request, [graphs("draft_rest", [1])])
    assert [(each.phase, each.planned, each.captured) for each in found][1:] == [
        (Phase.DRAFT_REST, (), (1,))
    ]
