"""Stated acceptance lengths: the published table, and the one rate that reaches a length."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgbench.request.acceptance_lengths import GOLDEN, conditional_rate, parse_length, stated_length

PUBLISHED = """\
deepseek-v4-on    1.79 2.27 2.49 2.54 2.55 2.55 2.54 2.58
deepseek-v4-off   1.92 2.61 2.97 3.00 3.10 3.16 3.00 3.11
glm-5.2-on        1.84 2.50 2.99 3.33 3.61 3.78 3.91 4.06
qwen3.5-397b-on   1.93 2.73 3.39 3.97 4.41 4.80 5.04 5.21
qwen3.5-397b-off  1.92 2.70 3.33 3.83 4.20 4.48 4.73 4.71
"""


def test_the_table_is_the_published_one() -> None:
    rows = [line.split() for line in PUBLISHED.splitlines()]
    assert [*GOLDEN] == [name for name, *_ in rows]
    for name, *lengths in rows:
        assert GOLDEN[name].lengths == tuple(map(float, lengths))


@given(k=st.integers(1, 24), share=st.floats(0, 1))
def test_the_rate_reaches_the_length(k: int, share: float) -> None:
    length = 1 + share * k
    rate = conditional_rate(length, k)
    assert 0 <= rate <= 1
    assert sum(rate**kept for kept in range(k + 1)) == pytest.approx(length, abs=1e-9)


def test_rates_worked_by_hand() -> None:
    """1 + p + p^2 = 1.75 at p = 0.5; with one draft p is what the length is over 1."""
    assert conditional_rate(1.75, 2) == pytest.approx(0.5)
    assert conditional_rate(1.84, 1) == pytest.approx(0.84)
    assert (conditional_rate(1.0, 3), conditional_rate(4.0, 3)) == (0, 1)


@pytest.mark.parametrize(
    ("acceptance", "k", "length"),
    [
        ("greedy", 3, None),
        ("sampled:top-k=5", 3, None),
        ("synthetic:0.8,0.6,0.4", 3, None),
        ("length:2.5", 3, 2.5),
        ("length:2.5", 0, None),
        ("golden:qwen3.5-397b-off", 8, 4.71),
        ("golden:glm-5.2-on (borrowed)", 1, 1.84),
    ],
)
def test_which_rules_state_a_length(acceptance: str, k: int, length: float | None) -> None:
    assert stated_length(acceptance, k) == length


@pytest.mark.parametrize("text", ["length:2.75", "golden:glm-5.2-on (borrowed)", "length:3"])
def test_a_length_is_spelt_as_it_is_read(text: str) -> None:
    assert str(parse_length(text)) == text


def test_the_documentation_has_the_same_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    found = {cells[1].strip(" `"): cells[3:-1] for cells in rows if cells[1].strip(" `") in GOLDEN}
    assert {name: tuple(map(float, cells)) for name, cells in found.items()} == {
        name: row.lengths for name, row in GOLDEN.items()
    }
