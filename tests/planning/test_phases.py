"""Every phase's graphs: each engine's rule, the best lists by phase, and the union for vLLM."""

import json
import random
import shlex
from dataclasses import replace
from functools import cache
from itertools import combinations, product

import pytest

from cgbench.planning import POLICIES, Concurrency, Costs, Curve, PlanRequest, plan
from cgbench.planning.costs import DRAFT_SHARE, Drafts
from cgbench.planning.expected import costs_of, expected_cost, weights_of
from cgbench.planning.flags import union_for_vllm, union_warnings
from cgbench.planning.phase_optimum import (
    phase_cost,
    phase_optimum,
    phase_problem,
    phases_at,
)
from cgbench.planning.phases import PhasePlan, phases_of, ranges
from cgbench.planning.policies.vllm import decode_graphs
from cgbench.words import Phase

ENGINES = sorted(POLICIES.keys() - {"explicit", "optimal", "exact", "scaled"})


def planned(policy: str, k: int, most: int, **special: object) -> PhasePlan:
    request = PlanRequest(k, most, policy, **special)
    return phases_of(request, plan(request))


@pytest.mark.parametrize("policy", sorted(POLICIES.keys() - {"explicit"}))
@pytest.mark.parametrize("k", [0, 1, 3, 32])
def test_verify_has_the_plans_own_buckets(policy: str, k: int) -> None:
    found = planned(policy, k, 12, max_graphs=5)
    first = found.phases[0]
    assert first.phase in (Phase.VERIFY, Phase.ITERATION)
    assert first.batch_sizes == found.plan.batch_sizes
    if first.phase is Phase.VERIFY:
        assert tuple(each.phase for each in found.phases) == phases_at(k)


def test_an_engine_with_one_list_of_requests_serves_every_phase_alike() -> None:
    found = planned("lmdeploy-0.18", 3, 20)
    assert {each.batch_sizes for each in found.phases} == {(1, 2, 4, 8, 16, 20)}
    assert found.num_graphs == 18


def test_sglang_aligns_verify_by_tokens_and_drafts_by_requests() -> None:
    """4 ranks that gather, k = 1: 2 requests are 4 tokens in verify, 2 in the draft graphs."""
    found = planned("sglang-0.5.23", 1, 12, tp_size=4)
    assert found.of(Phase.VERIFY).batch_sizes == (2, 4, 6, 8, 10, 12)
    assert found.of(Phase.DRAFT_FIRST).batch_sizes == (4, 8, 12)
    assert found.eager_batch_sizes == ()


def test_sglang_captures_an_extend_for_each_module() -> None:
    found = planned("sglang-0.5.23", 3, 4, module_per_draft=True)
    rest = found.of(Phase.DRAFT_REST)
    assert (rest.query_len, rest.graphs_per_bucket, rest.num_graphs) == (4, 2, 8)
    assert found.num_graphs == 4 + 4 + 8


def test_tensorrt_llm_has_one_graph_for_target_and_drafts() -> None:
    [whole] = planned("tensorrt-llm-1.3", 3, 8).phases
    assert (whole.phase, whole.num_graphs, whole.query_len) == (Phase.ITERATION, 4, 4)
    [verify] = planned("tensorrt-llm-1.3", 0, 8).phases
    assert verify.phase is Phase.VERIFY


def test_fastdeploy_captures_the_first_step_alone() -> None:
    found = planned("fastdeploy-2.5", 3, 4)
    assert found.of(Phase.DRAFT_FIRST).batch_sizes == (1, 2, 4)
    assert found.of(Phase.DRAFT_REST).buckets == ()
    assert found.eager_batch_sizes == (1, 2, 3, 4)


def test_vllm_ascend_has_no_graph_off_its_grid() -> None:
    """S = 9, k = 1: 18 tokens are off the grid 1, 2, 4, 8, 16. 9 requests run eager."""
    found = planned("vllm-ascend-0.30", 1, 9)
    assert found.of(Phase.VERIFY).batch_sizes == (1, 2, 4, 8)
    assert found.of(Phase.VERIFY).eager_batch_sizes == 1
    filtered = planned("vllm-ascend-0.30", 1, 9, tp_size=4)
    assert filtered.plan.capture_tokens == (4, 8, 16)


def test_a_list_of_vllm_ascend_that_is_cut_is_not_off_stride() -> None:
    """256 requests of 4 tokens need 1,024, and the list ends at 512."""
    said = " ".join(planned("vllm-ascend-0.30", 3, 256).plan.warnings)
    assert "truncated" in said and "off-stride" not in said
    assert "off-stride" in " ".join(planned("vllm-ascend-0.30", 1, 9).plan.warnings)


def test_lightllm_is_dense_to_32_and_then_grows_by_16() -> None:
    found = planned("lightllm", 1, 100)
    assert found.plan.batch_sizes == (*range(1, 33), 48, 64, 80, 96, 100)
    assert found.plan.capture_tokens[-1] == 200


def test_lmdeploy_goes_on_by_256() -> None:
    assert planned("lmdeploy-0.18", 0, 800).plan.batch_sizes == (
        *(1, 2, 4, 8, 16, 32, 64, 128),
        *(256, 512, 768, 800),
    )
    listed = planned("lmdeploy-0.18", 0, 10, graph_sizes=(4, 4, 64))
    assert listed.plan.batch_sizes == (4, 10)


def test_neighbouring_sizes_are_named_together() -> None:
    assert [*ranges([1, 2, 3, 7, 9, 10])] == [(1, 3), (7, 7), (9, 10)]


def instance(seed: int) -> tuple[PlanRequest, int]:
    """A small problem with a workload and costs at random, measured by phase in half of them."""
    rng = random.Random(seed)
    most, k = rng.randint(1, 6), rng.randint(0, 4)
    weights = [(n, rng.choice([0.0, 1.0, rng.random()])) for n in range(1, most + 1)]
    workload = Concurrency.of([*weights, (rng.randint(1, most), 1.0)], "random")
    points = range(1, most + 1)

    def curve(least: float) -> Curve:
        return Curve(tuple((n, least + rng.random()) for n in points))

    drafts = Drafts(curve(0.1), curve(0.5)) if k and seed % 2 else None
    costs = Costs("ms", curve(2.0), curve(4.0 * rng.random() + 1.5), drafts=drafts)
    request = PlanRequest(k, most, "optimal", concurrency=workload, costs=costs)
    return request, rng.randint(0, 3 * most)


def cost_of(problem: object, sizes: tuple[int, ...]) -> float:
    """The reference: each batch size in the smallest bucket that holds it, else eager."""
    total = 0.0
    for n, weight in enumerate(problem.weights, start=1):
        bucket = min((size for size in sizes if size >= n), default=None)
        total += weight * (problem.graph[bucket - 1] if bucket else problem.eager[n - 1])
    return total


def by_brute_force(request: PlanRequest, num_graphs: int) -> float:
    """Every set of buckets of every phase, no more than ``num_graphs`` together."""
    columns = []
    for phase in phases_at(request.spec_tokens):
        problem, sizes = phase_problem(request, phase), range(1, request.max_batch_size + 1)
        columns.append(
            [
                min(cost_of(problem, chosen) for chosen in combinations(sizes, count))
                for count in range(request.max_batch_size + 1)
            ]
        )
    counts = product(*(range(len(column)) for column in columns))
    return min(
        sum(column[j] for column, j in zip(columns, each, strict=True))
        for each in counts
        if sum(each) <= num_graphs
    )


@pytest.mark.parametrize("block", range(20))
def test_the_best_lists_equal_brute_force(block: int) -> None:
    """1,000 instances, 50 a block."""
    for seed in range(50 * block, 50 * (block + 1)):
        request, num_graphs = instance(seed)
        found = phase_optimum(request, num_graphs)
        assert found.cost == pytest.approx(by_brute_force(request, num_graphs))
        assert found.num_graphs <= num_graphs
        shown = replace_phases(request, found.phases)
        assert phase_cost(request, shown) == pytest.approx(found.cost)


def replace_phases(request: PlanRequest, phases: tuple) -> PhasePlan:
    return PhasePlan(plan(replace(request, policy="exact")), phases)


@pytest.mark.parametrize("policy", ENGINES)
@pytest.mark.parametrize(("k", "most"), [(0, 9), (1, 33), (2, 20), (3, 64), (5, 100)])
def test_no_engines_list_is_better_with_as_many_graphs(policy: str, k: int, most: int) -> None:
    request = PlanRequest(k, most, policy)
    engines = phases_of(request, plan(request))
    # One graph of TensorRT-LLM holds every phase.
    whole = engines.of(Phase.ITERATION)
    graphs = engines.num_graphs * (len(phases_at(k)) if whole else 1)
    assert phase_optimum(request, graphs).cost <= phase_cost(request, engines) * (1 + 1e-12)


def test_phases_sum_to_the_iteration_that_was_measured() -> None:
    flat = Curve(((1, 5.0), (4, 8.0)))
    costs = Costs("ms", flat, Curve(((1, 50.0),)), drafts=Drafts(Curve(((1, 2.0),)), flat))
    request = PlanRequest(3, 4, "scaled", costs=costs)
    found = phases_of(request, plan(request))
    whole = expected_cost(found.plan, weights_of(request), costs_of(request))
    assert phase_cost(request, found) == pytest.approx(whole)


def test_a_draft_costs_a_share_of_verify_where_nothing_was_measured() -> None:
    """k = 3: draft 1 runs 4 tokens, drafts 2 and 3 one each, at 7 % of verify's cost a token."""
    request = PlanRequest(3, 1, "exact")
    found = phases_of(request, plan(request))
    assert phase_cost(request, found) == pytest.approx(4 + DRAFT_SHARE * (4 + 2))


@cache
def union_of(k: int, most: int, num_graphs: int) -> tuple[PlanRequest, object, tuple[int, ...]]:
    request = PlanRequest(k, most, "optimal", concurrency=Concurrency.parse("geometric:7"))
    found = phase_optimum(request, num_graphs)
    text = union_for_vllm(found.phases)
    _, value = shlex.split(text)
    return request, found, tuple(json.loads(value)["cudagraph_capture_sizes"])


@pytest.mark.parametrize(("k", "most"), [(0, 16), (1, 20), (3, 40), (7, 64)])
@pytest.mark.parametrize("num_graphs", [3, 12, 40])
def test_vllm_captures_the_union_for_every_phase(k: int, most: int, num_graphs: int) -> None:
    request, found, tokens = union_of(k, most, num_graphs)
    captured = decode_graphs(request, tokens)
    for phase in found.phases:
        kept = captured.later_drafts if phase.phase is Phase.DRAFT_REST else captured.verify
        assert set(phase.batch_sizes) <= set(kept)
    assert [*union_warnings(request, found.phases)] == []


def test_a_bucket_that_vllm_would_drop_is_named() -> None:
    request, found, _ = union_of(3, 40, 40)
    small = replace(request, max_num_batched_tokens=64)
    [said] = union_warnings(small, found.phases)
    assert "no graph of verify for" in said and said.endswith("Raise it")
