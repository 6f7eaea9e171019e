"""What holds of every policy, whatever is asked."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgbench.planning import MAX_SPEC_TOKENS, POLICIES, CapturePlan, PlanRequest, plan

GENERATED = sorted(POLICIES.keys() - {"explicit"})
COVER_ONE = ("fastdeploy-2.4", "scaled")

spec_tokens = st.integers(0, MAX_SPEC_TOKENS)
batch_sizes = st.integers(1, 1100)


@st.composite
def requests(draw: st.DrawFn, policies: tuple[str, ...] = tuple(sorted(POLICIES))) -> PlanRequest:
    """Requests that their policy accepts."""
    policy, k, most = draw(st.sampled_from(policies)), draw(spec_tokens), draw(batch_sizes)
    if policy == "fastdeploy-2.4" and k and most * (k + 1) % 2:
        most += 1
    if policy != "explicit":
        return PlanRequest(k, most, policy)
    sizes = draw(st.lists(st.integers(1, most), min_size=1, max_size=20))
    unit = draw(st.sampled_from(["requests", "tokens"]))
    scale = k + 1 if unit == "tokens" else 1
    return PlanRequest(k, most, policy, tuple(size * scale for size in sizes), unit)


def all_batch_sizes(found: CapturePlan) -> range:
    return range(1, found.max_batch_size + 2)


@given(requests())
def test_buckets_are_positive_increasing_and_scaled(request: PlanRequest) -> None:
    found = plan(request)
    assert all(size >= 1 for size in found.batch_sizes)
    assert all(small < large for small, large in pairwise(found.batch_sizes))
    for bucket in found.buckets:
        assert bucket.num_tokens == bucket.batch_size * (request.spec_tokens + 1)


@given(requests())
def test_bucket_for_is_the_smallest_that_holds_the_batch(request: PlanRequest) -> None:
    found = plan(request)
    for batch_size in all_batch_sizes(found):
        fitting = [b for b in found.buckets if b.batch_size >= batch_size]
        assert found.bucket_for(batch_size) == min(
            fitting, key=lambda bucket: bucket.batch_size, default=None
        )


@given(requests())
def test_bucket_for_is_monotone(request: PlanRequest) -> None:
    found = plan(request)
    buckets = [found.bucket_for(batch_size) for batch_size in all_batch_sizes(found)]
    for smaller, larger in pairwise(buckets):
        assert larger is None or (smaller and smaller.batch_size <= larger.batch_size)


@given(requests())
def test_every_batch_size_is_either_covered_or_eager(request: PlanRequest) -> None:
    found = plan(request)
    eager = [n for n in range(1, found.max_batch_size + 1) if found.bucket_for(n) is None]
    assert len(eager) == found.eager_batch_sizes
    assert all(n > found.eager_above for n in eager)


@given(requests())
def test_padding_is_a_share(request: PlanRequest) -> None:
    found = plan(request)
    for batch_size in range(1, found.eager_above + 1):
        bucket = found.bucket_for(batch_size)
        assert bucket is not None
        assert 0 <= bucket.padding_frac(batch_size) < 1
    assert 0 <= found.mean_padding < 1


@given(requests())
def test_no_bucket_is_over_the_kv_room(request: PlanRequest) -> None:
    assert plan(request).eager_above <= request.max_batch_size


@given(requests(COVER_ONE))
def test_batch_size_one_has_a_graph_of_its_own(request: PlanRequest) -> None:
    assert plan(request).batch_sizes[0] == 1


@pytest.mark.parametrize("policy", GENERATED)
@given(most=batch_sizes)
def test_without_drafts_tokens_are_requests(policy: str, most: int) -> None:
    found = plan(PlanRequest(0, most, policy))
    assert found.query_len == 1
    assert found.indivisible == ()
    assert set(found.batch_sizes) <= set(found.capture_tokens)


@given(requests(("scaled",)))
def test_scaled_states_whole_requests_only(request: PlanRequest) -> None:
    found = plan(request)
    assert found.indivisible == ()
    assert found.capture_tokens == tuple(bucket.num_tokens for bucket in found.buckets)


@given(requests(("scaled",)))
def test_scaled_covers_everything_up_to_its_cap(request: PlanRequest) -> None:
    most = min(512 // request.query_len, request.max_batch_size)
    assert plan(request).eager_above == most
