"""``cgbench tune`` as a person and a program call it."""

import json
from pathlib import Path

import pytest

from tests.support.command import cgbench
from tests.support.recorded import H200

MANY_K = H200 / "qwen3.5-0.8b-k0123"


def test_without_acceptance_break_even_is_all_that_is_said() -> None:
    done = cgbench("tune", MANY_K)
    assert done.code == 0
    assert "Break-even acceptance" in done.stdout and "Best k" not in done.stdout
    assert "no k is advised" in done.stdout and "speculative" not in done.stdout


def test_advice_comes_with_what_to_paste_into_three_engines() -> None:
    done = cgbench("tune", MANY_K, "--acceptance", "synthetic:0.8,0.6,0.4")
    assert done.code == 0
    assert "a fixed k = 3 is the best" in done.stdout
    for word in ("num_speculative_tokens", "max_draft_len: 3", "--speculative-num-steps 3"):
        assert word in done.stdout


def test_flags_print_the_option_alone() -> None:
    asked = ("--acceptance", "golden:deepseek-v4-on", "--min-effect", "0.1%", "--flags", "vllm")
    done = cgbench("tune", MANY_K, *asked)
    comment, option = done.stdout.splitlines()
    assert done.code == 0 and comment.startswith("# context 1024")
    assert '"num_speculative_tokens_per_batch_size": [[1, 2, 3], [3, 64, 2]]' in option


def test_flags_without_advice_cannot_be_printed() -> None:
    cgbench("tune", MANY_K, "--flags", "vllm").refused(3, "--flags vllm", "no schedule")


def test_what_the_data_cannot_tell_is_inconclusive() -> None:
    done = cgbench("tune", MANY_K, "--acceptance", "golden:deepseek-v4-on", "--json")
    (context,) = json.loads(done.stdout)["contexts"]
    assert done.code == 4
    assert context["advised"] == [] and context["options"] == {}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--min-effect", "0"),
        ("--confidence", "100%"),
        ("--flags", "lmdeploy"),
        ("--concurrency", "geometric:x"),
        ("--acceptance", "sampled"),
        ("--against", "5"),
    ],
)
def test_a_bad_value_is_one_line_that_names_its_flag(flag: str, value: str) -> None:
    cgbench("tune", MANY_K, flag, value).refused(2, flag, value)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    cgbench("tune", tmp_path).refused(2, str(tmp_path / "run.json"))


def test_the_surface_tells_measured_from_predicted() -> None:
    done = cgbench("tune", MANY_K, "--surface")
    assert done.code == 0 and "measured cells between others, left out" in done.stdout
    found = json.loads(cgbench("tune", MANY_K, "--surface", "--json").stdout)["surface"]
    assert {cell["is_measured"] for cell in found["cells"]} == {True}
    assert 0 < found["left_out_median_error"] < 0.03


def test_a_surface_of_too_few_cells_cannot_be_told() -> None:
    done = cgbench("tune", H200 / "mimo-7b-k3-compiled", "--surface")
    assert done.code == 3 and "--surface: 6 cells are too few" in done.stderr
