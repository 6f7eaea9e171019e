"""Draft lengths by batch size: the forms that engines read, and all graphs of such a deployment."""

import pytest

from cgbench.errors import BadInputError
from cgbench.planning import PlanRequest
from cgbench.planning.draft_schedule import (
    DraftSchedule,
    Tier,
    adaptive,
    from_ranges,
    from_sets,
    from_thresholds,
)
from cgbench.planning.policies.vllm import token_list
from cgbench.planning.tier_plans import deployment_of, expected_cost
from cgbench.words import Phase


def tiers(found: DraftSchedule) -> list[tuple[int, int, tuple[int, ...]]]:
    return [(tier.first, tier.last, tier.lengths) for tier in found.tiers]


def test_vllms_ranges_carry_forward_through_a_gap_and_above_the_last() -> None:
    """[[1, 16, 3], [32, 128, 2]]: 17 to 31 draft 3, and 129 on draft 2."""
    found = from_ranges("x", [[1, 16, 3], [32, 128, 2]], 256, 3)
    assert tiers(found) == [(1, 31, (3,)), (32, 256, (2,))]


def test_vllms_lengths_are_at_most_the_configured_one() -> None:
    found = from_ranges("x", [[1, 4, 9], [5, 8, 1]], 8, 5)
    assert tiers(found) == [(1, 4, (5,)), (5, 8, (1,))]


def test_tensorrt_llms_thresholds_are_the_largest_batch_and_above_the_last_none_drafts() -> None:
    """{4: 4, 8: 2, 32: 1}, as the engine's own comment has it."""
    found = from_thresholds("x", {8: 2, 4: 4, 32: 1}, 64)
    assert tiers(found) == [(1, 4, (4,)), (5, 8, (2,)), (9, 32, (1,)), (33, 64, (0,))]


def test_tensorrt_llms_smallest_batches_draft_the_longest() -> None:
    """max_draft_len 4, as the engine's own check wants it. Without one it has nothing to check."""
    expected = [(1, 4, (4,)), (5, 8, (2,))]
    assert tiers(from_thresholds("x", {4: 4, 8: 2}, 8, 4)) == expected
    assert tiers(from_thresholds("x", {4: 2, 8: 4}, 8)) == [(1, 4, (2,)), (5, 8, (4,))]


def test_sglangs_sets_begin_at_their_batch_size() -> None:
    found = adaptive(100)
    assert tiers(found) == [
        (1, 7, (1, 3, 5, 7)),
        (8, 31, (0, 1, 3)),
        (32, 63, (0, 1)),
        (64, 100, (0,)),
    ]
    assert found.lengths == (0, 1, 3, 5, 7)
    assert found.first_length == 3


def test_neighbours_that_draft_alike_are_one_tier() -> None:
    assert tiers(from_ranges("x", [[1, 2, 3], [3, 4, 3]], 8, 3)) == [(1, 8, (3,))]


MISTAKES = [
    (lambda: from_ranges("x", [], 8, 3), "x: must be [[first, last, k], ..]"),
    (lambda: from_ranges("x", [[1, 2]], 8, 3), "x: must be [[first, last, k], ..]"),
    (lambda: from_ranges("x", [[2, 4, 1]], 8, 3), "x: the first range must start at batch size 1"),
    (lambda: from_ranges("x", [[1, 4, 1], [4, 8, 2]], 8, 3), "x: batch size 4 is in two ranges"),
    (lambda: from_thresholds("x", {}, 8), "x: must be batch sizes and draft lengths"),
    (lambda: from_thresholds("x", {"a": 1}, 8), "x: a must be a whole number of at least 1"),
    (lambda: from_thresholds("x", {4: 99}, 8), "x: draft length 99 must be at most 32"),
    (lambda: from_thresholds("x", {4: 2, 8: 3}, 8, 3), "x: the engine refuses it. The smallest"),
    (lambda: from_thresholds("x", {4: 2, 8: 3}, 8, 2), "x: the engine refuses it. The smallest"),
    (lambda: from_sets("x", [], 8), "x: must be a JSON object"),
    (lambda: from_sets("x", {"alpha": 1}, 8), 'x: must have a batch size, such as {"1": ..}'),
    (lambda: from_sets("x", {"1": {}}, 8), "x: candidate_steps must be a list of draft lengths"),
    (lambda: adaptive(8, 4), "--speculative-num-steps 4: must be one of the adaptive lengths"),
]


@pytest.mark.parametrize("case", range(len(MISTAKES)))
def test_a_bad_schedule_is_refused_in_one_line(case: int) -> None:
    call, message = MISTAKES[case]
    with pytest.raises(BadInputError) as caught:
        call()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_vllm_lists_each_lengths_sizes_up_to_its_widest_batch() -> None:
    """k = 3 to 8 requests and k = 1 to 20, ceiling 2 * 20 * 4 = 160 tokens.

    Of k = 3: 4, 8, 16, 32 tokens. Of k = 1: 2, 4, 8, 16, 32 and 40. The grid has all but 2 * 1.
    """
    schedule = from_ranges("x", [[1, 8, 3], [9, 20, 1]], 20, 3)
    request = PlanRequest(3, 20, "vllm-0.33", schedule=schedule)
    assert token_list(request) == [1, 2, 4, *range(8, 161, 8)]


def test_vllm_has_a_graph_set_a_length() -> None:
    schedule = from_ranges("x", [[1, 8, 3], [9, 20, 1]], 20, 3)
    found = deployment_of(PlanRequest(3, 20, "vllm-0.33"), schedule)
    one, three = found.lengths
    assert (one.spec_tokens, three.spec_tokens) == (1, 3)
    assert one.runs == tuple(range(9, 21)) and three.runs == tuple(range(1, 9))
    assert one.phases.of(Phase.DRAFT_REST) is None
    # Every length finds its graphs in the whole list, above its own batches too.
    assert max(three.phases.of(Phase.VERIFY).batch_sizes) == 20
    assert found.num_graphs == one.phases.num_graphs + three.phases.num_graphs


def test_a_longer_configured_length_raises_vllms_ceiling() -> None:
    schedule = from_ranges("x", [[1, 4, 1]], 4, 7)
    assert token_list(PlanRequest(1, 4, "vllm-0.33", schedule=schedule))[-1] == 64


def test_tensorrt_llm_captures_each_size_at_its_own_length() -> None:
    """Sizes 1, 2, 4, 8, 16; {3: 3, 16: 1}: 3 requests pad to 4, which drafts 1. They run eager."""
    schedule = from_thresholds("x", {3: 3, 16: 1}, 16)
    found = deployment_of(PlanRequest(3, 16, "tensorrt-llm-1.3"), schedule)
    by_length = {each.spec_tokens: each.phases.plan.batch_sizes for each in found.lengths}
    assert by_length == {1: (4, 8, 16), 3: (1, 2)}
    assert found.num_graphs == 5
    assert found.eager_batch_sizes == (3,)


def test_sglang_captures_every_length_of_a_set_and_the_first_at_every_size() -> None:
    found = deployment_of(PlanRequest(3, 64, "sglang-0.5.23"), adaptive(64))
    by_length = {each.spec_tokens: each.phases.plan.batch_sizes for each in found.lengths}
    assert by_length[7] == by_length[5] == tuple(range(1, 8))
    assert by_length[3][-1] == 64
    assert by_length[0][0] == 8
    assert found.eager_batch_sizes == ()


def test_sglang_pads_before_it_chooses() -> None:
    """31 requests pad to 32, whose set has no 3."""
    found = deployment_of(PlanRequest(3, 64, "sglang-0.5.23"), adaptive(64))
    three = next(each for each in found.lengths if each.spec_tokens == 3)
    assert three.runs == tuple(range(1, 31))


def test_one_length_for_all_costs_what_the_plan_costs() -> None:
    request = PlanRequest(2, 8, "exact")
    schedule = from_ranges("x", [[1, 8, 2]], 8, 2)
    found = deployment_of(request, schedule)
    # 3 tokens of verify, 3 of draft 1 and one of draft 2, at 7 % a token; the mean batch is 4.5.
    assert expected_cost(request, found) == pytest.approx(4.5 * (3 + 0.07 * 4))


def test_shorter_drafts_of_wide_batches_cost_less() -> None:
    request = PlanRequest(3, 16, "exact")
    all_three = from_ranges("x", [[1, 16, 3]], 16, 3)
    shorter = from_ranges("x", [[1, 4, 3], [5, 16, 1]], 16, 3)
    costs = [expected_cost(request, deployment_of(request, each)) for each in (all_three, shorter)]
    assert costs[1] < costs[0]


def test_a_tier_is_hashable() -> None:
    assert hash(Tier(1, 2, (3,))) and hash(adaptive(8))
