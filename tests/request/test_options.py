"""Options: the plans for every k, the band of the timed pass, and the KV room."""

from typing import Any

import pytest

from cgbench.errors import BadInputError, ExitCode, PlanError
from cgbench.measure.session import room_for
from cgbench.planning.study import DEFAULT_MAX_GRAPHS
from cgbench.request.options import RunOptions
from cgbench.workload.load import Workload
from tests.support.options import batch_sizes, make_options


def explicit(unit: str, *sizes: int, spec_tokens: tuple[int, ...]) -> RunOptions:
    return make_options(
        policy="explicit", capture_unit=unit, capture_sizes=sizes, spec_tokens=spec_tokens
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (explicit("tokens", 4, 8, 32, spec_tokens=(0, 3)), {0: (1, 2, 8), 3: (1, 2, 8)}),
        (explicit("tokens", 8, 16, spec_tokens=(0, 1, 3)), {0: (2, 4, 8), 1: (4, 8), 3: (2, 4)}),
        (explicit("requests", 2, 1, 5, spec_tokens=(0, 1, 3)), dict.fromkeys((0, 1, 3), (1, 2, 5))),
        (explicit("tokens", 2, 8, spec_tokens=(0,)), {0: (2, 8)}),
        (make_options(spec_tokens=(0, 2)), dict.fromkeys((0, 2), (1, 2, 4, 8))),
    ],
    ids=["tokens", "tokens, two k", "requests", "tokens, k = 0 alone", "scaled"],
)
def test_k_0_is_captured_at_the_batch_sizes_of_the_k_it_is_compared_with(
    options: RunOptions, expected: dict[int, tuple[int, ...]]
) -> None:
    """A size in tokens means another batch size at another k; the baseline is for requests."""
    assert batch_sizes(options) == expected
    assert list(options.plans()) == sorted(expected)


def test_a_size_that_one_of_the_k_cannot_use_is_refused() -> None:
    options = explicit("tokens", 4, spec_tokens=(0, 1, 2))
    with pytest.raises(PlanError, match="--capture-sizes: 4 tokens are not a multiple of 3"):
        options.plans()


@pytest.mark.parametrize(
    ("max_new_tokens", "iterations", "spec_tokens", "reach"),
    [
        (64, 10, (0, 3), 64),
        (8, 2, (0,), 8),
        (1, 2, (0,), 8),
        (8, 2, (0, 3), 32),
        (8, 2, (0, 1, 8), 72),
        (8, 24, (0, 3), 56),
    ],
)
def test_reach_holds_the_generation_the_audit_and_twice_the_band(
    max_new_tokens: int, iterations: int, spec_tokens: tuple[int, ...], reach: int
) -> None:
    options = make_options(
        max_new_tokens=max_new_tokens, iterations=iterations, spec_tokens=spec_tokens
    )
    assert (options.reach, options.band) == (reach, iterations)


def room(longest: int, max_positions: int = 10_000, **changes: Any) -> int:
    workload = Workload("a test", ((1,) * longest, (1,)))
    return room_for(make_options(**changes), workload, max_positions)


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(10, 256 + 64 + 6), (256, 256 + 64 + 6), (300, 300 + 64 + 6)],
)
def test_room_is_the_longest_context_the_band_and_two_k(longest: int, expected: int) -> None:
    assert room(longest) == expected


def test_room_up_to_the_last_position_is_used_and_no_further() -> None:
    assert room(10, max_positions=326) == 326
    with pytest.raises(BadInputError) as error:
        room(10, max_positions=325)
    assert str(error.value) == (
        "--context-len 256: with 70 tokens to decode it is over the model's 325 positions. "
        "Shorten it, or lower --max-new-tokens or --spec-tokens"
    )
    assert error.value.exit_code is ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    ("iterations", "max_new_tokens", "flags"),
    [
        (32, 64, ("--iterations", "--spec-tokens")),
        (28, 64, ("--max-new-tokens", "--spec-tokens")),
        (28, 63, ("--iterations", "--spec-tokens")),
        (2, 4, ("--spec-tokens",)),
    ],
)
def test_what_is_decoded_hangs_on_the_largest_of_three(
    iterations: int, max_new_tokens: int, flags: tuple[str, ...]
) -> None:
    options = make_options(iterations=iterations, max_new_tokens=max_new_tokens)
    assert options.reach_flags == flags


def test_a_prompt_too_long_is_named_by_its_number() -> None:
    workload = Workload("mine.jsonl", ((1,) * 4, (1,) * 300, (1,)))
    with pytest.raises(BadInputError) as error:
        room_for(make_options(), workload, 369)
    assert str(error.value) == (
        "--prompts mine.jsonl, prompt 2 of 300 tokens: with 70 tokens to decode it is over the "
        "model's 369 positions. Shorten it, or lower --max-new-tokens or --spec-tokens"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec_tokens": (0, 17)}, "--spec-tokens 17: must be 0 to 16"),
        ({"batch_sizes": (0, 1)}, "--batch-sizes 0: must be 1 to 65536"),
        ({"batch_sizes": (1, 9)}, "--batch-sizes 9: over --max-num-seqs 8"),
        ({"iterations": 0}, "--iterations 0: must be at least 1"),
        ({"precision": 1.5}, "--precision 1.5: must be a share, 0 to below 1"),
        ({"precision": -0.1}, "--precision -0.1: must be a share, 0 to below 1"),
        ({"min_time_s": 5.0, "max_time_s": 2.0}, "--min-time 5: must be 0 to --max-time, 2"),
        ({"max_time_s": -1.0}, "--max-time -1: must be 0 to 604,800 seconds, a week"),
        ({"min_time_s": -1.0, "max_time_s": 2.0}, "--min-time -1: must be 0 to --max-time, 2"),
    ],
)
def test_values_that_cannot_be_used_name_their_flag(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as error:
        make_options(**changes)
    assert str(error.value) == message


def test_the_prefill_budget_is_the_engines_token_budget() -> None:
    """`run` captures what `plan` shows: at 200 tokens vLLM's list ends at 50 requests of k = 3."""
    plans = make_options(policy="vllm-0.18", max_batch_size=256, max_num_batched_tokens=200).plans()
    assert plans[3].eager_above == 50
    unread = make_options(policy="scaled", max_batch_size=256, max_num_batched_tokens=200).plans()
    assert unread[3].eager_above == 128
    assert not any("changes nothing" in text for text in unread[3].warnings)


def test_optimal_has_a_budget_of_graphs() -> None:
    plans = make_options(policy="optimal", max_batch_size=256).plans()
    assert {len(each.buckets) for each in plans.values()} == {DEFAULT_MAX_GRAPHS}
