"""The rules that decide, apart from any run."""

import pytest

from cgbench.errors import BadInputError
from cgbench.gate.verdicts import (
    ACCEPTANCE,
    ITERATION,
    MEMORY,
    Gate,
    Interval,
    Line,
    Metric,
    Verdict,
    decide,
    decide_status,
    doubted,
    exit_code,
)
from cgbench.words import Status


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        ((0.03, 0.01, 0.05), Verdict.REGRESSED),
        ((0.02, 0.001, 0.04), Verdict.REGRESSED),
        ((0.019, 0.001, 0.04), Verdict.INCONCLUSIVE),
        ((0.03, 0.0, 0.06), Verdict.INCONCLUSIVE),
        ((0.015, 0.01, 0.02), Verdict.SAME),
        ((0.0, -0.02, 0.02), Verdict.SAME),
        ((0.0, -0.021, 0.02), Verdict.INCONCLUSIVE),
        ((-0.03, -0.05, -0.01), Verdict.FASTER),
        ((-0.03, -0.05, 0.0), Verdict.INCONCLUSIVE),
        ((float("nan"),) * 3, Verdict.INCONCLUSIVE),
    ],
)
def test_a_time(effect: tuple[float, float, float], verdict: Verdict) -> None:
    assert decide(Interval(*effect), 0.02, ITERATION) is verdict


@pytest.mark.parametrize(
    ("metric", "change", "verdict"),
    [
        (ACCEPTANCE, -0.05, Verdict.REGRESSED),
        (ACCEPTANCE, 0.05, Verdict.IMPROVED),
        (MEMORY, 0.05, Verdict.REGRESSED),
        (MEMORY, -0.05, Verdict.IMPROVED),
        (MEMORY, 0.01, Verdict.SAME),
    ],
)
def test_which_way_is_worse(metric: Metric, change: float, verdict: Verdict) -> None:
    assert decide(Interval(change, change, change), 0.02, metric) is verdict


def test_nothing_is_the_same_in_a_disturbed_cell() -> None:
    assert [doubted(verdict, ITERATION) for verdict in Verdict] == [Verdict.INCONCLUSIVE] * 7
    assert doubted(Verdict.SAME, ACCEPTANCE) is Verdict.INCONCLUSIVE
    assert doubted(Verdict.REGRESSED, ACCEPTANCE) is Verdict.REGRESSED


@pytest.mark.parametrize(
    ("base", "new", "verdict"),
    [
        (Status.OK, Status.OK, None),
        (Status.OK, Status.DISTURBED, None),
        (Status.OK, Status.AUDIT_FAILED, Verdict.REGRESSED),
        (Status.DISTURBED, Status.OOM, Verdict.REGRESSED),
        (Status.OOM, Status.OK, Verdict.IMPROVED),
        (Status.AUDIT_FAILED, Status.OK, Verdict.IMPROVED),
        (Status.OOM, Status.OOM, Verdict.SAME),
        (Status.AUDIT_FAILED, Status.AUDIT_FAILED, Verdict.NOT_COMPARABLE),
        (Status.OOM, Status.AUDIT_FAILED, Verdict.NOT_COMPARABLE),
        (Status.OK, Status.FLOOR_BEATEN, Verdict.NOT_COMPARABLE),
        (Status.FLOOR_BEATEN, Status.OK, Verdict.NOT_COMPARABLE),
        (Status.FLOOR_BEATEN, Status.FLOOR_BEATEN, Verdict.NOT_COMPARABLE),
    ],
)
def test_what_statuses_decide_alone(base: Status, new: Status, verdict: Verdict | None) -> None:
    assert decide_status(base, new) is verdict


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ("", 0),
        ("same faster improved changed", 0),
        ("same inconclusive", 4),
        ("inconclusive|not comparable", 3),
        ("inconclusive|not comparable|regressed", 1),
    ],
)
def test_of_several_exit_codes(verdicts: str, code: int) -> None:
    words = verdicts.split("|") if "|" in verdicts else verdicts.split()
    lines = [Line(what="x", verdict=Verdict(word), gated=True) for word in words]
    reported = [Line(what="x", verdict=verdict, gated=False) for verdict in Verdict]
    assert exit_code(lines + reported) == code


def test_the_default_gate_leaves_eager_out() -> None:
    gate = Gate()
    assert gate.holds("tpot", "phase") and gate.holds("memory", "iteration")
    assert not gate.holds("tpot", "eager") and not gate.holds("verify", "phase")


def test_eager_alone_adds_to_the_default() -> None:
    assert Gate.parse("eager") == Gate(with_eager=True)
    assert Gate.parse("verify,eager").holds("verify", "eager")
    assert not Gate.parse("verify").holds("tpot", "phase")


def test_a_gate_may_have_blanks_between_as_other_lists_may() -> None:
    assert Gate.parse("verify, eager") == Gate.parse("verify,eager")


def test_an_unknown_gate_is_named() -> None:
    with pytest.raises(BadInputError, match=r"--gate latency: unknown. Choose of iteration,tpot"):
        Gate.parse("tpot,latency")
