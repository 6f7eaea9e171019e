"""``cgbench plan`` as typed: what is printed, and one line and exit code 2 for mistakes."""

import json
import sys
from pathlib import Path

import pytest

from cgbench.cli import main
from cgbench.tables import plan_plot


class Result:
    """What one command printed, and its exit code."""

    def __init__(self, exit_code: int, out: str, err: str) -> None:
        self.exit_code, self.out, self.err = exit_code, out, err


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs ``cgbench plan`` with these words."""

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["cgbench", "plan", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Result(int(ended.value.code or 0), printed.out, printed.err)

    return run


def test_a_table_of_buckets(plan) -> None:
    found = plan("--spec-tokens", "2", "--max-num-seqs", "12")
    assert found.exit_code == 0
    assert "scaled, k = 2, max_num_seqs 12" in found.out
    assert "9-12" in found.out
    assert found.err == ""


def test_all_policies_with_a_refusal_and_savings(plan) -> None:
    found = plan("--spec-tokens", "2", "--max-num-seqs", "171", "--policy", "all")
    assert found.exit_code == 0
    assert "refused: fastdeploy-2.4: an odd token count" in found.out
    assert "fastdeploy-2.4 refuses" not in found.out
    assert "What optimal saves, k = 2, 32 graphs" in found.out
    assert "explicit" not in found.out


@pytest.mark.parametrize(
    ("policy", "listed"), [("scaled, exact", 2), ("all,scaled", 17), ("all,explicit", 18)]
)
def test_policies_with_blanks_between_and_all_among_them(plan, policy: str, listed: int) -> None:
    found = plan("--policy", policy, "--format", "json")
    assert len(json.loads(found.out)["plans"]) == listed


def test_all_policies_with_sizes_of_ones_own(plan) -> None:
    found = plan("--policy", "all", "--capture-sizes", "8,16,256")
    assert found.exit_code == 0
    assert "explicit" in found.out


def test_a_table_a_k(plan) -> None:
    found = plan("--spec-tokens", "1,3,5", "--max-num-seqs", "8", "--format", "markdown")
    assert [line for line in found.out.splitlines() if line.startswith("### Buckets")] == [
        f"### Buckets of verify, scaled, k = {k}, max_num_seqs 8, every batch size alike"
        for k in (1, 3, 5)
    ]


def test_json_is_json_alone(plan) -> None:
    found = plan("--format", "json", "--policy", "all")
    policies = [each["policy"] for each in json.loads(found.out)["plans"]]
    assert "vllm-0.33" in policies and policies[-1] == "optimal"


def test_csv(plan) -> None:
    found = plan("--format", "csv", "--max-num-seqs", "2")
    assert found.out.splitlines()[1] == "scaled,3,graph,1,4,1,1,0.0,0.0,0.5,"


def test_workload(plan) -> None:
    found = plan("--max-num-seqs", "8", "--concurrency", "constant:3")
    assert "max_num_seqs 8, constant:3" in found.out
    assert "mean padding 25.0 %" in found.out


def test_flags_are_alone_on_stdout(plan) -> None:
    found = plan("--policy", "vllm-0.18", "--max-num-seqs", "256", "--flags", "vllm")
    assert found.out.count("\n") == 1
    assert found.out.startswith("--compilation-config '{")
    assert "warning: truncated" in found.err


def test_flags_for_several_k(plan) -> None:
    found = plan("--spec-tokens", "1,3", "--max-num-seqs", "2", "--flags", "sglang")
    assert found.out.splitlines() == [
        "# k = 1",
        "--cuda-graph-bs-decode 1 2",
        "# k = 3",
        "--cuda-graph-bs-decode 1 2",
    ]


def test_json_holds_the_flags_of_every_plan(plan) -> None:
    words = ("--spec-tokens", "1,3", "--max-num-seqs", "2", "--flags", "vllm", "--format", "json")
    found = plan(*words)
    sizes = [each["flags"].partition("cudagraph_capture_sizes")[2] for each in flags_of(found)]
    assert sizes == ["\": [1, 2, 4]}'", "\": [1, 2, 4, 8]}'"]
    assert found.err == ""


def test_json_without_flags_holds_none(plan) -> None:
    [one] = flags_of(plan("--format", "json", "--max-num-seqs", "2"))
    assert one["flags"] is None


def flags_of(found: Result) -> list[dict[str, str]]:
    return json.loads(found.out)["plans"]


def test_a_refused_plan_has_no_flags_and_its_reason_beside_them(plan) -> None:
    words = ("--policy", "fastdeploy-2.4", "--spec-tokens", "2,3", "--max-num-seqs", "3")
    refused, _ = flags_of(plan(*words, "--flags", "fastdeploy", "--format", "json"))
    assert refused["flags"] is None and "odd token count" in refused["refusal"]


def test_a_line_about_one_of_several_k_names_it(plan) -> None:
    words = ("--policy", "fastdeploy-2.4", "--max-num-seqs", "171", "--flags", "fastdeploy")
    found = plan(*words, "--spec-tokens", "2,3")
    assert (found.exit_code, found.out.splitlines()[0]) == (0, "# k = 3")
    refused, warning, *_ = found.err.splitlines()
    assert refused.startswith("refused: k = 2: fastdeploy-2.4 refuses an odd token count")
    assert warning.startswith("warning: k = 3: truncated")


def test_flags_warn_of_what_vllm_drops(plan) -> None:
    words = ("--max-num-seqs", "4096", "--capture-sizes", "1,4096", "--flags", "vllm")
    assert "warning: vLLM drops sizes over" in plan(*words).err
    [one] = flags_of(plan(*words, "--format", "json"))
    assert any("vLLM drops sizes over" in warning for warning in one["warnings"])


@pytest.mark.parametrize("k", ["2", "2,4"])
def test_where_every_plan_is_refused_the_answer_is_one_line_and_exit_code_2(plan, k: str) -> None:
    found = plan("--policy", "fastdeploy-2.4", "--max-num-seqs", "171", "--spec-tokens", k)
    assert (found.exit_code, found.out) == (2, "")
    assert found.err.startswith("error: fastdeploy-2.4 refuses an odd token count")
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("words", [("--policy", "scaled,fastdeploy-2.4"), ("--spec-tokens", "2,3")])
def test_where_some_plans_are_refused_the_others_are_printed_with_the_reason(plan, words) -> None:
    base = {"--policy": "fastdeploy-2.4", "--spec-tokens": "2", "--max-num-seqs": "171"}
    given = {**base, words[0]: words[1]}
    found = plan(*(word for pair in given.items() for word in pair))
    assert found.exit_code == 0
    assert "an odd token count: --max-num-seqs 171 times 3 is 513" in found.out


def test_eager_penalty_decides_what_is_captured(plan) -> None:
    words = ("--policy", "optimal", "--max-graphs", "1", "--max-num-seqs", "4", "--flags", "sglang")
    assert plan(*words).out == "--cuda-graph-bs-decode 4\n"
    assert plan(*words, "--eager-penalty", "1.01").out == "--cuda-graph-bs-decode 1\n"


@pytest.mark.parametrize("suffix", plan_plot.FORMATS)
def test_plot(plan, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"padding{suffix}"
    found = plan("--policy", "scaled,nano-vllm", "--max-num-seqs", "100", "--plot", str(file))
    assert found.exit_code == 0
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}
    assert file.read_bytes().startswith(begins[suffix])
    assert suffix != ".html" or b"<svg" in file.read_bytes()
    assert f"written to {file}" in found.err


def test_plot_without_matplotlib(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = plan("--plot", "x.png")
    assert found.exit_code == 2
    assert found.err == "error: --plot needs matplotlib: pip install 'cgbench[plot]'\n"


@pytest.mark.parametrize(
    "words",
    [
        ("--flags", "vllm", "--policy", "all"),
        ("--flags", "paddle"),
        ("--flags", "vllm", "--policy", "optimal", "--eager-penalty", "0.1"),
    ],
)
def test_a_refusal_leaves_no_plot(plan, tmp_path: Path, words: tuple[str, ...]) -> None:
    found = plan(*words, "--spec-tokens", "1,3", "--plot", str(tmp_path / "padding.svg"))
    assert (found.exit_code, found.out) == (2, "")
    assert list(tmp_path.iterdir()) == []


MISTAKES = {
    "--policy best": "--policy best: unknown. Choose one of",
    "--policy scaled,best": "--policy best: unknown. Choose one of",
    "--policy scaled,": "--policy : unknown. Choose one of",
    "--policy=": "--policy : unknown. Choose one of",
    "--spec-tokens 33": "--spec-tokens 33: must be 0 to 32",
    "--spec-tokens three": "--spec-tokens three: must be whole numbers",
    "--max-num-seqs 0": "--max-num-seqs 0: must be 1 to 65536",
    "--max-num-seqs 1000000000": "--max-num-seqs 1000000000: must be 1 to 65536",
    "--max-num-batched-tokens 0": "--max-num-batched-tokens 0: must be at least 1",
    "--tp 0": "--tp 0: must be at least 1",
    "--max-graphs 0": "--max-graphs 0: must be at least 1",
    "--policy fastdeploy-2.4 --spec-tokens 2 --max-num-seqs 171": "odd token count",
    "--capture-sizes 3 --capture-unit tokens": "3 tokens are not a multiple of 4",
    "--capture-unit tokens": "give --capture-sizes too",
    "--capture-sizes 4 --policy scaled": "--capture-sizes goes with --policy explicit",
    "--policy explicit": "--policy explicit needs --capture-sizes",
    "--concurrency nowhere.csv": "--concurrency nowhere.csv: cannot be read",
    "--concurrency=": "--concurrency .: cannot be read. Give a file, or geometric:MEAN",
    "--concurrency geometric:0": "--concurrency geometric:0: the mean must be",
    "--max-graphs 4": "--max-graphs: a budget of --policy optimal. Add it",
    "--policy scaled,exact --max-capture-seconds 4": "--max-capture-seconds: a budget of",
    "--costs run --eager-penalty 3": "--eager-penalty: not with --costs",
    "--flags vllm --format csv": "--format csv: holds no --flags",
    "--flags paddle --format json": "--flags paddle: unknown. Choose one of fastdeploy",
    "--flags vllm --policy all --format json": "--flags vllm: goes with one --policy",
    "--policy optimal --max-memory 1GB": "--max-memory needs --costs RUN_DIR",
    "--policy optimal --max-memory=": "--max-memory : must be a size",
    "--policy optimal --max-memory much": "--max-memory much: must be a size",
    f"--policy optimal --max-memory {'9' * 400}": f"--max-memory {'9' * 20}..: must be below",
    "--eager-penalty 1e308": "--eager-penalty 1e+308: must be a number above 0, from 1e-06",
    f"--concurrency constant:{'9' * 5000}": "must be a batch size of 1 to",
    "--policy optimal --max-capture-seconds 3": "--max-capture-seconds needs --costs RUN_DIR",
    "--policy optimal --max-capture-seconds nan": "--max-capture-seconds nan: must be above 0",
    "--eager-penalty 0": "--eager-penalty 0.0: must be a number above 0",
    "--costs nowhere": "nowhere/run.json: missing or damaged: No such file or directory\n",
    "--flags=": "--flags : unknown. Choose one of fastdeploy",
    "--flags paddle": "--flags paddle: unknown. Choose one of fastdeploy",
    "--flags vllm --policy all": "--flags vllm: goes with one --policy",
    "--plot chart.pdf": "--plot chart.pdf: must end in .png, .svg, .html",
    "--plot nowhere/chart.png": "--plot nowhere/chart.png: no such folder",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(plan, words: str) -> None:
    found = plan(*words.split())
    assert found.exit_code == 2
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert MISTAKES[words] in found.err
    assert found.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("512", 512), ("2KB", 2000), ("2KiB", 2048), ("1.5GiB", 1610612736), ("1g", 10**9)],
)
def test_bytes(text: str, value: int) -> None:
    from cgbench.cli.values import parse_bytes

    assert parse_bytes("--max-memory", text) == value
