"""``--acceptance``: what is read, how it is spelt in the record, and what is refused."""

import re

import pytest

from cgbench.engine.acceptance import AcceptanceRule, AtLength, Greedy, Sampled, Synthetic, rule_of
from cgbench.errors import BadInputError
from cgbench.request.acceptance_lengths import GOLDEN, GoldenLength, StatedLength
from cgbench.request.acceptance_setting import AcceptanceSetting
from cgbench.request.choices import Drafts


@pytest.mark.parametrize(
    ("text", "rule", "spelt"),
    [
        ("greedy", Greedy(), "greedy"),
        ("synthetic:0.85,.6,0.40", Synthetic((0.85, 0.6, 0.4)), "synthetic:0.85,0.6,0.4"),
        ("synthetic:1,1,0", Synthetic((1.0, 1.0, 0.0)), "synthetic:1,1,0"),
        ("length:2.50", AtLength(StatedLength(2.5)), "length:2.5"),
        ("length:1", AtLength(StatedLength(1.0)), "length:1"),
        (
            "golden:deepseek-v4-off",
            AtLength(GoldenLength(GOLDEN["deepseek-v4-off"])),
            "golden:deepseek-v4-off",
        ),
        (
            "golden:glm-5.2-on (borrowed)",
            AtLength(GoldenLength(GOLDEN["glm-5.2-on"], is_borrowed=True)),
            "golden:glm-5.2-on (borrowed)",
        ),
        ("sampled", Sampled(), "sampled"),
        ("sampled:temperature=1.0,top-p=1,drafts=sampled", Sampled(), "sampled"),
        ("sampled:top-p=1, temperature=2", Sampled(temperature=2.0), "sampled:temperature=2"),
        ("sampled:temperature=2", Sampled(temperature=2.0), "sampled:temperature=2"),
        ("sampled:temperature=1e-6", Sampled(temperature=1e-6), "sampled:temperature=1e-06"),
        ("sampled:top-k=50", Sampled(top_k=50), "sampled:top-k=50"),
        (
            "sampled:drafts=greedy,top-p=0.950,temperature=.8",
            Sampled(0.8, None, 0.95, Drafts.GREEDY),
            "sampled:temperature=0.8,top-p=0.95,drafts=greedy",
        ),
    ],
)
def test_rules_are_read_and_spelt_one_way(text: str, rule: AcceptanceRule, spelt: str) -> None:
    setting = AcceptanceSetting.parse(text, [0, 3])
    assert rule_of(setting) == rule
    assert str(setting) == spelt
    assert AcceptanceSetting.parse(spelt, [0, 3]) == setting


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sampling", "choose greedy, sampled, .* or synthetic"),
        ("greedy:1", "choose greedy, sampled, .* or synthetic"),
        ("length", "a number of at least 1"),
        ("length:", "a number of at least 1"),
        ("length:long", "a number of at least 1"),
        ("length:nan", "a number of at least 1"),
        ("length:inf", "a number of at least 1"),
        ("length:0.99", "a number of at least 1"),
        ("length:4.01", "--spec-tokens 3 reaches lengths of 1 to 4"),
        ("golden", "unknown. Choose golden: and one of deepseek-v4-on, .*qwen3.5-397b-off"),
        ("golden:glm", "unknown. Choose golden: and one of deepseek-v4-on"),
        ("synthetic", "must be rates"),
        ("synthetic:a", "must be rates"),
        ("synthetic:1.5,0.2,0.1", "between 0 and 1"),
        ("synthetic:nan,0.2,0.1", "between 0 and 1"),
        ("synthetic:0.2,0.5,0.1", "cannot rise"),
        ("synthetic:0.9,0.5", "2 rates for 3 drafts"),
        ("sampled:", "unknown setting ''. Choose temperature, top-k, top-p, drafts"),
        ("sampled:0.8", "unknown setting '0.8'"),
        ("sampled:top_p=0.9", "unknown setting 'top_p'"),
        ("sampled:top-p=0.9,", "unknown setting ''"),
        ("sampled:top-k=3,top-k=3", "top-k is given twice"),
        ("sampled:temperature=0", "temperature must be .* at least 1e-06, for .* choose greedy"),
        ("sampled:temperature=-1", "temperature must be .* at least 1e-06"),
        ("sampled:temperature=nan", "temperature must be a finite number"),
        ("sampled:temperature=inf", "temperature must be a finite number"),
        ("sampled:temperature", "temperature must be"),
        ("sampled:top-k=0", "top-k must be a whole number from 1 to"),
        ("sampled:top-k=2.5", "top-k must be a whole number"),
        ("sampled:top-p=0", "top-p must be above 0 and at most 1"),
        ("sampled:top-p=1.1", "top-p must be above 0 and at most 1"),
        ("sampled:top-p=nan", "top-p must be above 0 and at most 1"),
        ("sampled:drafts=random", "drafts must be sampled or greedy"),
    ],
)
def test_refusals_are_one_line_that_names_the_flag(text: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=rf"--acceptance {re.escape(text)}: .*{reason}") as e:
        AcceptanceSetting.parse(text, [0, 3])
    assert "\n" not in str(e.value)


def test_a_length_is_refused_by_the_first_k_that_cannot_reach_it() -> None:
    with pytest.raises(BadInputError, match=r"--spec-tokens 1 reaches lengths of 1 to 2$"):
        AcceptanceSetting.parse("length:2.5", [0, 1, 3])
    assert AcceptanceSetting.parse("length:2.5", [0, 2, 3]).length == StatedLength(2.5)


def test_a_golden_length_is_refused_by_the_k_that_has_no_row() -> None:
    with pytest.raises(BadInputError, match=r"has no row for --spec-tokens 9$"):
        AcceptanceSetting.parse("golden:glm-5.2-on", [0, 3, 9])


def test_without_drafts_any_length_is_fine() -> None:
    """k = 0 is measured beside every k, for comparison."""
    assert AcceptanceSetting.parse("length:4", [0]).length == StatedLength(4.0)
