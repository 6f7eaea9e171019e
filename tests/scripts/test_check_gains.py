"""The trial of gains' intervals: what it leaves out, and that they hold on recorded runs."""

import sys
from pathlib import Path

import pytest

import check_gains
from cgbench.statistics import CONFIDENCE
from check_gains import ALIKE, EACH, LEFT_OUT, SEVERAL, Row, left_out, rows_of, shares_held
from tests.support.recorded import H200, recorded

CHOSEN_BY = ("mimo-7b-surface", "qwen3.5-35b-surface", "qwen3.5-0.8b-k0123")
"""The rule was chosen by these."""

UNSEEN = ("mimo-7b-surface-64",)


@pytest.mark.parametrize("names", [CHOSEN_BY, UNSEEN], ids=["chosen by", "unseen"])
def test_intervals_hold_the_gains_of_recorded_runs_as_often_as_they_state(
    names: tuple[str, ...],
) -> None:
    """Each inner batch size is left out in turn: 17 of the runs that the rule was chosen by."""
    rows = [row for name in names for row in each_left_out(name)]
    assert [row.run for row in rows] == [name for name in names for _ in range(2)]
    found = shares_held(rows)
    assert {*found} == {(EACH, LEFT_OUT), (EACH, ALIKE)}
    assert min(found.values()) >= CONFIDENCE
    # Wide intervals would hold always.
    assert max(found.values()) < 1


def each_left_out(name: str) -> list[Row]:
    return rows_of(recorded(name), CONFIDENCE, several=False, named=())


def test_every_inner_size_is_left_out_and_three_are_kept() -> None:
    assert [*left_out([1, 2, 4, 8], several=False)] == [(2,), (4,)]
    assert [*left_out([1, 2, 4, 8], several=True)] == [(2,), (4,)]
    assert [*left_out([1, 2, 4, 8, 16], several=True)] == [
        *((2,), (4,), (8,)),
        *((2, 4), (2, 8), (4, 8)),
    ]


@pytest.mark.parametrize(("is_held", "code"), [([True, True], 0), ([True, False], 1)])
def test_the_exit_code_says_whether_the_intervals_hold(
    is_held: list[bool], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("a run", SEVERAL, ALIKE, [0.01, 0.03], is_held)
    monkeypatch.setattr(check_gains, "rows_of", lambda *_, **__: [row])
    output = tmp_path / "gains.md"
    path = str(H200 / "qwen3.5-0.8b-k0123")
    monkeypatch.setattr(sys, "argv", ["check_gains", path, "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        check_gains.main()
    assert ended.value.code == code
    text = output.read_text()
    assert "| qwen3.5-0.8b-k0123 | 5 | 1.89 | 2.42 |" in text
    share = "100.0" if all(is_held) else "50.0"
    assert f"| a run | several | every measured size | 2 | {share} | 2.0 |" in text
