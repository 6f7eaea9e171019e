"""Differences are judged by logprobs: a near-tie is no fault, and a far one is."""

import pytest

from cgbench.endpoint.answers import Answer
from cgbench.endpoint.near_ties import (
    LEAST_NOISE,
    Likeness,
    Noise,
    Outcome,
    judge,
    measure_noise,
    worst,
)

QUIET = Noise(0.01, 0.001, 100)


def answer(text: str, logprobs: list[float] | None = None, **others: dict[int, float]) -> Answer:
    """An answer of a token a letter. ``others``: the runner-up of some positions."""
    values = [-0.1] * len(text) if logprobs is None else logprobs
    tops = []
    for at, (token, value) in enumerate(zip(text, values, strict=True)):
        ups = {name: found[at] for name, found in others.items() if at in found}
        tops.append({token: value, "?": value - 9} | ups)
    return Answer(tuple(text), text, "length", (0.0, 1.0), tuple(values), tuple(tops))


def test_equal_answers() -> None:
    assert judge(answer("abcd"), answer("abcd"), QUIET) == Outcome(Likeness.EQUAL)


def test_a_near_tie_in_both_lists_is_forgiven() -> None:
    expected = answer("abXd", X={}, Y={2: -0.115})
    got = answer("abYz", Y={}, X={2: -0.11})
    found = judge(expected, got, QUIET)
    assert found.likeness is Likeness.NEAR_TIE
    assert (found.position, found.expected, found.got) == (2, "X", "Y")
    assert found.gap == pytest.approx(0.015)
    assert judge(expected, got, QUIET, is_exact=True).likeness is Likeness.WRONG


@pytest.mark.parametrize(
    ("in_expected", "in_got"), [(-0.3, -0.11), (-0.11, -0.3), (None, -0.11), (-0.11, None)]
)
def test_a_difference_that_is_far_in_either_list_is_wrong(
    in_expected: float | None, in_got: float | None
) -> None:
    expected = answer("abX", Y={} if in_expected is None else {2: in_expected})
    got = answer("abY", X={} if in_got is None else {2: in_got})
    assert judge(expected, got, QUIET).likeness is Likeness.WRONG


def test_no_noise_makes_a_large_gap_a_near_tie() -> None:
    expected, got = answer("X", Y={0: -1.3}), answer("Y", X={0: -0.2})
    assert judge(expected, got, Noise(50.0, 0.0, 9)).likeness is Likeness.WRONG


def test_without_logprobs_a_difference_is_not_judged() -> None:
    def plain(text: str) -> Answer:
        return Answer(tuple(text), text, "length", (0.0,), ids=tuple(map(ord, text)))

    assert judge(plain("abc"), plain("abd"), QUIET).likeness is Likeness.UNJUDGED
    assert judge(plain("abc"), plain("abd"), QUIET, is_exact=True).likeness is Likeness.WRONG
    assert judge(plain("abc"), plain("abc"), QUIET).likeness is Likeness.EQUAL


def test_text_alone_has_to_begin_what_was_expected() -> None:
    def text(words: str) -> Answer:
        return Answer(tuple(words), words, "length", (0.0,))

    whole = text("a longer text")
    assert whole.first(3) is whole
    assert judge(whole, text("a long"), QUIET).likeness is Likeness.EQUAL
    assert judge(whole, text("a lon\ufffd"), QUIET).likeness is Likeness.EQUAL
    assert judge(whole, text("a lost"), QUIET).likeness is Likeness.UNJUDGED
    assert judge(whole, text(""), QUIET, is_exact=True).likeness is Likeness.WRONG


def test_an_answer_that_ends_early_is_wrong_unless_the_text_ended() -> None:
    cut = answer("ab")
    assert judge(answer("abcd"), cut, QUIET).likeness is Likeness.WRONG
    stopped = Answer(cut.tokens, cut.text, "stop", cut.arrivals, cut.logprobs, cut.tops)
    assert judge(answer("abcd"), stopped, QUIET).likeness is Likeness.UNJUDGED


def test_a_token_that_its_own_list_finds_unlikely_is_wrong() -> None:
    got = answer("abcd", Z={3: 0.5})
    found = judge(answer("abcd"), got, QUIET)
    assert found.likeness is Likeness.WRONG and "likelier in its own list" in found.text


def test_logprobs_that_are_all_shifted_are_wrong() -> None:
    """One expert chosen otherwise moves a few positions. A wrong position moves them all."""
    text = "abcdefghijkl"
    base = answer(text)
    few = [-0.1] * 10 + [-0.6, -0.7]
    assert judge(base, answer(text, few), QUIET).likeness is Likeness.EQUAL
    found = judge(base, answer(text, [-0.15] * 12), QUIET)
    assert found.likeness is Likeness.WRONG and "off by 0.05" in found.text
    # So few tokens have no median worth a verdict.
    assert judge(answer("abc"), answer("abc", [-0.3] * 3), QUIET).likeness is Likeness.EQUAL


def test_noise_is_measured_up_to_the_first_difference() -> None:
    text = "abcdefgh"
    pairs = [
        (answer(text), answer(text, [-0.1] * 7 + [-0.13])),
        (answer("abX", Y={2: -0.15}), answer("abY", X={2: -0.12})),
    ]
    found = measure_noise(pairs)
    assert found.token == pytest.approx(0.03) and found.answer == 0.0 and found.positions == 10
    assert found.near_tie == pytest.approx(0.06)
    assert measure_noise([]).near_tie == 2 * LEAST_NOISE


def test_what_is_wrong_comes_first() -> None:
    outcomes = [
        Outcome(likeness) for likeness in (Likeness.EQUAL, Likeness.WRONG, Likeness.UNJUDGED)
    ]
    assert [each.likeness for each in worst(outcomes)] == [
        Likeness.WRONG,
        Likeness.UNJUDGED,
        Likeness.EQUAL,
    ]
