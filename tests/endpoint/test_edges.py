"""Edges lie where a plan changes graphs, and a probe puts a batch on both sides of one."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cgbench.endpoint.edges import Edge, edges_of
from cgbench.endpoint.endpoint_request import EndpointRequest, planned
from cgbench.endpoint.probes import LONGEST, SHORTEST, prompts_of, ragged, rows_of
from cgbench.planning import PlanRequest, plan
from cgbench.planning.phases import phases_of
from cgbench.planning.plan_request import CaptureUnit


def test_edges_of_vllm_are_those_of_each_phase() -> None:
    """S = 20, k = 2: drafts 2..k have no graph above 16 requests, verify has all."""
    edges = {edge.batch_size: edge for edge in edges_of(PlanRequest(2, 20, "vllm-0.33"), None)}
    assert edges[16].changes[-1] == "draft_rest 16 to eager" and edges[16].is_steep
    assert edges[16].peak == 17
    assert edges[20] == Edge(20, 20, ("the largest batch",), True)
    assert not edges[1].is_steep


def test_tiers_are_edges() -> None:
    line = (
        'vllm serve m --max-num-seqs 8 --speculative-config \'{"method": "mtp", '
        '"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": '
        "[[1, 4, 3], [5, 8, 0]]}'"
    )
    found = planned(EndpointRequest(endpoint="http://x", launch_line=line))
    assert found.num_draft_lengths == 1 and found.words.startswith("vllm-0.33, k by batch size")
    edges = {edge.batch_size: edge for edge in edges_of(found.request, found.schedule)}
    assert "k 3 to 0" in edges[4].changes and edges[4].is_steep
    # Above the tier nothing drafts, so no change of a draft phase is an edge there.
    above = [word for edge in edges.values() if edge.batch_size > 4 for word in edge.changes]
    assert not any("draft" in words for words in above)


def test_explicit_sizes_in_tokens() -> None:
    request = EndpointRequest(
        endpoint="http://x",
        capture_sizes=(4, 8),
        capture_unit=CaptureUnit.TOKENS,
        max_num_seqs=3,
        spec_tokens=3,
    )
    found = planned(request)
    assert [edge.batch_size for edge in edges_of(found.request, found.schedule)] == [1, 2, 3]


@given(
    st.integers(0, 8),
    st.integers(1, 300),
    st.sampled_from(["vllm-0.33", "sglang-0.5.23", "scaled"]),
)
def test_every_change_of_a_phase_is_an_edge(k: int, most: int, policy: str) -> None:
    request = PlanRequest(k, most, policy)
    edges = {edge.batch_size: edge for edge in edges_of(request, None)}
    spans = [span for phase in phases_of(request, plan(request)).phases for span in phase.spans]
    assert {*edges} == {span.last for span in spans} | {most}
    assert all(edge.peak == min(size + 1, most) for size, edge in edges.items())


@given(st.integers(1, 40), st.integers(2, 20), st.integers(8, 200), st.integers(0, 5))
def test_a_probe_climbs_over_the_edge_and_falls_below_it(
    size: int, num_prompts: int, max_tokens: int, turn: int
) -> None:
    edge = Edge(size, size + 1, (), False)
    *long, last = rows = rows_of(edge, num_prompts, max_tokens, 1.0, turn=turn)
    assert len(rows) == edge.peak
    assert all(1 <= row.max_tokens <= max_tokens and 0 <= row.prompt < num_prompts for row in rows)
    assert all(row.delay_s <= last.delay_s < 1 for row in long)
    assert all(row.max_tokens >= last.max_tokens for row in long)
    # Neighbours decode different prompts, or a neighbour's KV would be as good as one's own.
    assert all(a.prompt != b.prompt for a, b in pairwise(rows))


def test_rows_that_arrive_at_once_and_in_turn() -> None:
    edge = Edge(3, 4, (), False)
    assert {row.delay_s for row in rows_of(edge, 4, 64, 2.0, at_once=True)} == {0.0}
    first, second = rows_of(edge, 8, 64, 2.0), rows_of(edge, 8, 64, 2.0, turn=1)
    assert {row.prompt for row in first}.isdisjoint(row.prompt for row in second)


def test_lengths_are_ragged() -> None:
    assert len({ragged(row, 64) for row in range(12)}) > 6


def test_prompts_are_ragged_and_differ() -> None:
    prompts = prompts_of(["def main():\n    pass\n" * 40, "A text. " * 60], 16)
    assert len({*prompts}) == 16
    assert all(len(prompt) <= LONGEST for prompt in prompts)
    assert len({len(prompt) for prompt in prompts}) > 8
    assert min(map(len, prompts)) >= SHORTEST - 2
    assert len({*prompts_of([""], 3)}) >= 1
