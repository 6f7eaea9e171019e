"""What holds of every policy, whatever is asked."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgbench.errors import PlanError
from cgbench.planning import MAX_SPEC_TOKENS, POLICIES, CapturePlan, PlanRequest, plan

GENERATED = sorted(POLICIES.keys() - {"explicit"})
COVER_ONE = ("exact", "fastdeploy-2.4", "fastdeploy-2.5", "nano-vllm", "scaled", "sglang-0.5.23")

spec_tokens = st.integers(0, MAX_SPEC_TOKENS)
batch_sizes = st.integers(1, 1100)


@st.composite
def requests(draw: st.DrawFn, policies: tuple[str, ...] = tuple(sorted(POLICIES))) -> PlanRequest:
    """Requests that their policy accepts, on one GPU and with a usual token budget."""
    policy, k, most = draw(st.sampled_from(policies)), draw(spec_tokens), draw(batch_sizes)
    if policy == "fastdeploy-2.4" and k and most * (k + 1) % 2:
        most += 1
    if policy != "explicit":
        pad, blackwell = draw(st.booleans()), draw(st.booleans())
        return PlanRequest(k, most, policy, pad=pad, blackwell=blackwell)
    sizes = draw(st.lists(st.integers(1, most), min_size=1, max_size=20))
    unit = draw(st.sampled_from(["requests", "tokens"]))
    scale = k + 1 if unit == "tokens" else 1
    return PlanRequest(k, most, policy, tuple(size * scale for size in sizes), unit)


@st.composite
def special_requests(draw: st.DrawFn) -> PlanRequest:
    """Requests with tensor parallelism, a small token budget or a budget of graphs."""
    return PlanRequest(
        draw(spec_tokens),
        draw(batch_sizes),
        draw(st.sampled_from(GENERATED)),
        max_num_batched_tokens=draw(st.integers(1, 2000)),
        blackwell=draw(st.booleans()),
        pad=draw(st.booleans()),
        tp_size=draw(st.sampled_from([1, 2, 3, 4, 8])),
        max_graphs=draw(st.none() | st.integers(1, 20)),
    )


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
        fitting = [
            bucket
            for bucket in found.buckets
            if bucket.batch_size == batch_size or (found.pads and bucket.batch_size > batch_size)
        ]
        assert found.bucket_for(batch_size) == min(
            fitting, key=lambda bucket: bucket.batch_size, default=None
        )


@given(requests())
def test_bucket_for_is_monotone(request: PlanRequest) -> None:
    """Of padding plans in the holes too; of the others among the batch sizes that have a graph."""
    found = plan(request)
    buckets = [found.bucket_for(batch_size) for batch_size in all_batch_sizes(found)]
    if not found.pads:
        buckets = [bucket for bucket in buckets if bucket]
    for smaller, larger in pairwise(buckets):
        assert larger is None or (smaller and smaller.batch_size <= larger.batch_size)


@given(requests())
def test_every_batch_size_is_either_covered_or_eager(request: PlanRequest) -> None:
    found = plan(request)
    eager = [n for n in range(1, found.max_batch_size + 1) if found.bucket_for(n) is None]
    assert len(eager) == found.eager_batch_sizes
    assert eager == [n for span in found.eager_spans for n in range(span.first, span.last + 1)]
    assert not found.pads or all(n > found.eager_above for n in eager)


@given(requests())
def test_spans_are_the_batch_sizes_in_order(request: PlanRequest) -> None:
    found = plan(request)
    sizes = [(n, span.bucket) for span in found.spans for n in range(span.first, span.last + 1)]
    assert sizes == [(n, found.bucket_for(n)) for n in range(1, request.max_batch_size + 1)]


@given(requests())
def test_padding_is_a_share(request: PlanRequest) -> None:
    found = plan(request)
    for batch_size in range(1, found.eager_above + 1):
        bucket = found.bucket_for(batch_size)
        assert bucket is not None or not found.pads
        assert bucket is None or 0 <= bucket.padding_frac(batch_size) < 1
    assert 0 <= found.mean_padding < 1


@given(requests())
def test_no_bucket_is_over_the_kv_room(request: PlanRequest) -> None:
    assert plan(request).eager_above <= request.max_batch_size


@given(requests(COVER_ONE))
def test_batch_size_one_has_a_graph_of_its_own(request: PlanRequest) -> None:
    assert plan(request).batch_sizes[0] == 1


@pytest.mark.parametrize("policy", GENERATED)
@settings(max_examples=30)
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


@given(requests())
def test_indivisible_are_the_listed_sizes_that_hold_no_whole_requests(request: PlanRequest) -> None:
    found = plan(request)
    assert found.indivisible == tuple(t for t in found.capture_tokens if t % request.query_len)
    assert all(bucket.num_tokens <= max(found.capture_tokens) for bucket in found.buckets)


@given(special_requests())
def test_special_requests_are_planned_or_refused_in_words(request: PlanRequest) -> None:
    """Whatever is asked: a plan in order, or one line that names a flag."""
    try:
        found = plan(request)
    except PlanError as error:
        assert "--" in str(error) and "\n" not in str(error)
        return
    assert all(bucket.num_tokens == bucket.batch_size * found.query_len for bucket in found.buckets)
    assert found.eager_batch_sizes == sum(
        found.bucket_for(n) is None for n in range(1, request.max_batch_size + 1)
    )
    # SGLang alone rounds the most requests up, to a multiple of tp.
    room = -(-request.max_batch_size // request.tp_size) * request.tp_size
    assert found.eager_above <= (
        room if request.policy.startswith("sglang") else request.max_batch_size
    )


@pytest.mark.parametrize("policy", ["vllm-0.18", "sglang-0.5.23", "fastdeploy-2.5"])
@given(k=spec_tokens, most=st.integers(8, 600), tp=st.sampled_from([2, 4, 8]))
def test_tensor_parallel_sizes_are_multiples_of_it(policy: str, k: int, most: int, tp: int) -> None:
    try:
        found = plan(PlanRequest(k, most, policy, tp_size=tp))
    except PlanError:
        assert policy.startswith("vllm")
        return
    assert found.capture_tokens
    assert all(tokens % tp == 0 for tokens in found.capture_tokens)


@given(k=spec_tokens, most=batch_sizes, budget=st.integers(64, 3000))
def test_vllm_lists_nothing_over_the_token_budget(k: int, most: int, budget: int) -> None:
    for policy in ("vllm-0.18", "vllm-0.33"):
        found = plan(PlanRequest(k, most, policy, max_num_batched_tokens=budget))
        assert max(found.capture_tokens) <= budget


@given(most=batch_sizes)
def test_exact_and_unpadded_sglang_pad_nothing(most: int) -> None:
    for found in (
        plan(PlanRequest(3, most, "exact")),
        plan(PlanRequest(3, most, "sglang-0.5.23", pad=False)),
    ):
        assert found.batch_sizes == tuple(range(1, most + 1))
        assert found.mean_padding == 0
