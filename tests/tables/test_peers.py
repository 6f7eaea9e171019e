"""The tables of a comparison of peers."""

from dataclasses import replace

import pytest

from cgbench.engines.peer_rows import PEERS, Result, Round
from cgbench.tables.peers import WHAT, markdown, row_facts
from tests.support.peers import FACTS


def result(name: str, milliseconds: float, tokens: float) -> Result:
    return Result(name, [Round(milliseconds / 1e3 * 10, 10, tokens * 10)] * 3)


def test_every_peer_has_its_words() -> None:
    assert set(WHAT) == {*PEERS}


def test_the_tables() -> None:
    results = [
        result("iteration", 5, 3),
        result("dynamic", 20, 2),
        Result("static", reason="no"),
        result("verify", 4, 4),
        result("verify-compiled", 7, 4),
    ]
    text = markdown(FACTS, results)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    assert rows == [
        ["what", "ms / step", "tokens / step", "tok/s", "iteration is", "rounds"],
        ["---", "---:", "---:", "---:", "---:", "---:"],
        [WHAT["iteration"].format(k=1), "5.000 ± 0.000", "3.00", "600.0 ± 0.0", "1.00x", "3"],
        [WHAT["dynamic"], "20.000 ± 0.000", "2.00", "100.0 ± 0.0", "6.00x", "3"],
        [WHAT["static"], "no", "", "", "", ""],
        ["forward of 2 tokens a request", "ms", "cgbench is", "rounds"],
        ["---", "---:", "---:", "---:"],
        [WHAT["verify"], "4.000 ± 0.000", "1.00x", "3"],
        [WHAT["verify-compiled"], "7.000 ± 0.000", "1.75x", "3"],
    ]
    assert "Acceptance is synthetic" in text and "random weights" in text


@pytest.mark.parametrize(
    ("rule", "is_stated"),
    [("golden:glm-5.2-on (borrowed)", True), ("length:2.5", True), ("greedy", False)],
)
def test_acceptance_that_is_stated_is_called_synthetic(rule: str, is_stated: bool) -> None:
    text = markdown(replace(FACTS, acceptance=rule), [])
    assert ("Acceptance is synthetic" in text) == is_stated
    assert f"acceptance {rule}" in text


def test_a_row_says_what_ended_it_and_of_how_many_calls_it_is() -> None:
    rounds = [Round(0.05, 10, 30)] * 4
    text = markdown(FACTS, [Result("static"), Result("dynamic", rounds, "no memory", calls=2)])
    assert "| 4 in 2 calls, then no memory |" in text and "| no round yet |  |" in text


def test_a_row_as_plain_values_has_its_rounds_and_their_medians() -> None:
    facts = row_facts(result("iteration", 5, 3))
    assert facts["name"] == "iteration" and len(facts["rounds"]) == 3
    assert (facts["step_p50_ms"], facts["step_half_width_ms"]) == (pytest.approx(5.0), 0.0)
    assert (facts["tokens_per_step"], facts["tokens_per_s"]) == (3.0, pytest.approx(600.0))


def test_what_no_round_tells_is_none() -> None:
    empty = row_facts(Result("static", reason="no"))
    assert (empty["reason"], empty["step_p50_ms"], empty["tokens_per_step"]) == ("no", None, None)
    single = row_facts(Result("static", [Round(0.05, 10, 30)]))
    assert single["step_p50_ms"] == pytest.approx(5.0) and single["step_half_width_ms"] is None
