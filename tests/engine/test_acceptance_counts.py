"""Counting acceptance."""

from cgbench.engine.acceptance_counts import accepted_per_pos, before_repeat


def test_positions_are_counted_unconditionally() -> None:
    assert accepted_per_pos([0, 3, 1, 3, 2], 3) == (4, 3, 2)
    assert accepted_per_pos([], 2) == (0, 0)
    assert accepted_per_pos([0, 0], 0) == ()


def test_everything_counts_where_nothing_repeats() -> None:
    assert before_repeat(list(range(10)), [2, 3, 1]) == [2, 3, 1]


def test_counting_stops_at_the_first_repeated_8_gram() -> None:
    """0..7 twice: the repeat begins at token 8; iterations begin at tokens 1, 5, 9, 13, 17."""
    tokens = [*range(8), *range(8), *range(8)]
    assert before_repeat(tokens, [3, 3, 3, 3, 3]) == [3, 3]


def test_seven_equal_tokens_are_no_repeat() -> None:
    tokens = [*range(7), 99, *range(7), 98]
    assert before_repeat(tokens, [0] * 15) == [0] * 15
