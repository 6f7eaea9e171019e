"""Worked examples of every policy, by hand, and what each one refuses."""

import pytest

from cgbench.errors import PlanError
from cgbench.planning import (
    POLICIES,
    CaptureUnit,
    PlanRequest,
)
from tests.support.plans import planned

# (policy, k, max requests) -> tokens as stated, batch sizes with a graph
EXAMPLES = {
    ("scaled", 0, 1): ((1,), (1,)),
    ("scaled", 0, 10): ((1, 2, 4, 8, 10), (1, 2, 4, 8, 10)),
    ("scaled", 1, 20): ((2, 4, 8, 16, 32, 40), (1, 2, 4, 8, 16, 20)),
    ("scaled", 3, 8): ((4, 8, 16, 32), (1, 2, 4, 8)),
    ("scaled", 3, 9): ((4, 8, 16, 32, 36), (1, 2, 4, 8, 9)),
    # 512 is not a multiple of 3: the cap becomes 510 tokens, 170 requests.
    ("scaled", 2, 256): (
        (3, 6, 12, *range(24, 385, 24), 432, 480, 510),
        (1, 2, 4, *range(8, 129, 8), 144, 160, 170),
    ),
    ("fastdeploy-2.4", 0, 10): ((10, 8, 4, 2, 1), (1, 2, 4, 8, 10)),
    ("fastdeploy-2.4", 3, 10): ((40, 32, 16, 8, 4), (1, 2, 4, 8, 10)),
    # Requests first, k + 1 after: the cap of 512 requests is never reached here.
    ("fastdeploy-2.5", 2, 200): (
        (600, 576, 528, 480, 432, *range(384, 23, -24), 12, 6, 3),
        (1, 2, 4, *range(8, 129, 8), 144, 160, 176, 192, 200),
    ),
    # Ceiling 2 * 10 * 6 = 120; 1, 2, 4, 8, .. 120 rounded up to sixes; 30 is no such size, so a
    # batch of 5 runs in 36 tokens; decode uses those up to 60.
    ("vllm-0.18", 5, 10): (
        (6, 12, 18, 24, 36, 42, 48, 60, 66, 72, 84, 90, 96, 108, 114, 120),
        (1, 2, 3, 4, 6, 7, 8, 10),
    ),
    # The grid to 60: by 16 only from 256; max_num_seqs is not on it.
    ("vllm-0.18", 0, 30): ((1, 2, 4, *range(8, 61, 8)), (1, 2, 4, 8, 16, 24)),
    # 0.33 adds 3 tokens for each of 1, 2, 4, 8, 16 and 20 requests: 60 is new, the rest was there.
    ("vllm-0.33", 2, 20): (
        (3, 6, 9, 12, 18, 24, 33, 42, 48, 57, 60, 66, 72, 81, 90, 96, 105, 114, 120),
        (1, 2, 3, 4, 6, 8, 11, 14, 16, 19, 20),
    ),
    # Without drafts the most requests alone are added: 9 and 10 run in 10.
    ("vllm-0.33", 0, 10): ((1, 2, 4, 8, 10, 16), (1, 2, 4, 8, 10)),
    ("sglang-0.5.23", 0, 14): ((1, 2, 4, 8, 12, 14), (1, 2, 4, 8, 12, 14)),
    ("sglang-0.5.23", 1, 15): (
        (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 30),
        (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15),
    ),
    ("tensorrt-llm-1.3", 1, 200): (
        (2, 4, 8, *range(16, 257, 16), 384, 400),
        (1, 2, 4, *range(8, 129, 8), 192, 200),
    ),
    # 97..100 are between two sizes, and the maximum is not appended.
    ("nano-vllm", 0, 100): (
        (1, 2, 4, 8, *range(16, 97, 16)),
        (1, 2, 4, 8, *range(16, 97, 16)),
    ),
    # It lists 1, 2, 4, 8 over buffers of 6 rows: the last graph holds 6.
    ("nano-vllm", 0, 6): ((1, 2, 4, 6), (1, 2, 4, 6)),
    ("exact", 2, 3): ((3, 6, 9), (1, 2, 3)),
    # The cap of 512 stays as it is: 170 requests and two tokens over.
    ("fastdeploy-2.4", 2, 256): (
        (512, 480, 432, *range(384, 23, -24), 12, 6, 3),
        (1, 2, 4, *range(8, 129, 8), 144, 160, 170),
    ),
}


@pytest.mark.parametrize("case", EXAMPLES, ids=str)
def test_worked_example(case: tuple[str, int, int]) -> None:
    found = planned(*case)
    assert (found.capture_tokens, found.batch_sizes) == EXAMPLES[case]


def test_padding_and_holes() -> None:
    """512 tokens hold 128 of 130 requests at k = 3; two batch sizes run eager."""
    found = planned("scaled", 3, 130)
    assert (found.eager_above, found.eager_batch_sizes) == (128, 2)
    assert found.warnings == ("batch sizes 129 to 130 (2 of 130) have no graph: eager",)


def test_mean_padding() -> None:
    """Buckets 1, 2, 4, 5: only a batch of 3, in the bucket of 4, is padded, by a quarter."""
    assert planned("scaled", 3, 5).mean_padding == 0.25 / 5


def test_fastdeploy_reports_the_size_it_truncates() -> None:
    found = planned("fastdeploy-2.4", 2, 256)
    assert found.indivisible == (512,)
    assert found.warnings == (
        "512 tokens are not a multiple of 3: the graph holds 170 requests (510 tokens)",
        "batch sizes 171 to 256 (86 of 256) have no graph: eager",
    )


def test_fastdeploy_refuses_an_odd_token_count() -> None:
    with pytest.raises(PlanError, match=r"--max-num-seqs 9 times 3 is 27. Make --max-num-seqs"):
        planned("fastdeploy-2.4", 2, 9)


def test_fastdeploy_without_speculation_takes_an_odd_one() -> None:
    assert planned("fastdeploy-2.4", 0, 9).batch_sizes == (1, 2, 4, 8, 9)


@pytest.mark.parametrize(
    ("sizes", "unit", "tokens"),
    [
        ((8, 1, 2), "requests", (4, 8, 32)),
        ((8, 8, 4), "requests", (16, 32)),
        ((4, 32), "tokens", (4, 32)),
    ],
)
def test_explicit(sizes: tuple[int, ...], unit: CaptureUnit, tokens: tuple[int, ...]) -> None:
    found = planned("explicit", 3, 8, sizes, unit)
    assert found.capture_tokens == tokens
    assert found.batch_sizes == tuple(size // 4 for size in tokens)


def test_explicit_may_leave_large_batches_eager() -> None:
    found = planned("explicit", 3, 8, (2, 4))
    assert found.bucket_for(5) is None
    assert found.warnings == ("batch sizes 5 to 8 (4 of 8) have no graph: eager",)


REFUSED = [
    (
        (6,),
        "tokens",
        "--capture-sizes: 6 tokens are not a multiple of 4 (--spec-tokens 3 plus 1). Use 4 or 8",
    ),
    (
        (8, 16),
        "requests",
        "--capture-sizes: 16 requests (64 tokens) are over the KV room, 8 requests. "
        "Raise --max-num-seqs or drop that size",
    ),
    (
        (64,),
        "tokens",
        "--capture-sizes: 16 requests (64 tokens) are over the KV room, 8 requests. "
        "Raise --max-num-seqs or drop that size",
    ),
    ((0, 4), "requests", "--capture-sizes: every size must be at least 1"),
    ((-4,), "tokens", "--capture-sizes: every size must be at least 1"),
    ((), "requests", "--policy explicit needs --capture-sizes"),
]


@pytest.mark.parametrize(("sizes", "unit", "message"), REFUSED)
def test_explicit_refuses(sizes: tuple[int, ...], unit: CaptureUnit, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        planned("explicit", 3, 8, sizes, unit)
    assert str(caught.value) == message


def test_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(PlanError) as caught:
        planned("best", 3, 8)
    known = ", ".join(sorted(POLICIES))
    assert str(caught.value) == f"--policy best: unknown. Choose one of {known}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spec_tokens": 33, "max_batch_size": 8}, "--spec-tokens 33: must be 0 to 32"),
        ({"spec_tokens": -1, "max_batch_size": 8}, "--spec-tokens -1: must be 0 to 32"),
        ({"spec_tokens": 3, "max_batch_size": 0}, "--max-num-seqs 0: must be 1 to 65536"),
        ({"spec_tokens": 3, "max_batch_size": 65537}, "--max-num-seqs 65537: must be 1 to 65536"),
        (
            {"spec_tokens": 3, "max_batch_size": 8, "capture_sizes": (4,)},
            "--capture-sizes goes with --policy explicit, not with --policy scaled",
        ),
    ],
)
def test_request_refuses(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        PlanRequest(**arguments)
    assert str(caught.value) == message
