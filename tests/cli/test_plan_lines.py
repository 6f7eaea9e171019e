"""``cgbench plan`` for a line that starts an engine, with a GPU's defaults, and over a trace."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cgbench.cli import main

RUN = Path(__file__).parents[2] / "results" / "h200" / "mimo-7b-k3"

LINE = (
    "vllm serve M --max-num-seqs 20 --port 8000 "
    """--speculative-config '{"method": "mtp", "num_speculative_tokens": 2}'"""
)


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


def planned(found: Result) -> list[dict]:
    assert found.exit_code == 0, found.err
    return json.loads(found.out)["plans"]


def test_a_line_shows_every_phase(plan) -> None:
    found = plan("--from", LINE, "--gpu", "h200", "--format", "markdown")
    assert "### Graphs by phase, vllm-0.33, k = 2, max_num_seqs 20" in found.out
    assert "| drafts 2..k | 1 | 8 | 17-20 | 20.0 % | 7.3 % |" in found.out
    assert "| in all |  | 30 | 17-20 | 20.0 % |  |" in found.out
    assert "- max_num_batched_tokens 8192, the default on h200 (140 GiB)" in found.out
    assert "- batches that hold a prefill: 22 graphs, 1 to 120 tokens" in found.out


def test_what_is_not_understood_is_a_warning(plan) -> None:
    found = plan("--from", f"{LINE} --some-new-flag 3", "--format", "json")
    [one] = planned(found)
    assert "--some-new-flag 3: not understood" in one["warnings"]


def test_json_has_every_phase(plan) -> None:
    [one] = planned(plan("--from", LINE, "--format", "json"))
    assert [row["phase"] for row in one["phases"]] == ["verify", "draft_first", "draft_rest"]
    assert one["phases"][2]["eager"] == [[17, 20]]
    assert (one["any_phase_eager"], one["graphs_of_all_phases"]) == (4, 30)
    assert one["checked_against"] == "0.33.0"
    assert one["graph_memory_source"] == "stated model"


def test_json_has_a_short_form(plan) -> None:
    assert planned(plan("--from", LINE, "--json")) == planned(
        plan("--from", LINE, "--json", "--format", "json")
    )
    for other in ("table", "csv"):
        refused = plan("--from", LINE, "--json", "--format", other)
        assert (refused.exit_code, refused.out) == (2, "")
        assert refused.err == f"error: --json: is --format json, not --format {other}. Drop one\n"


def test_a_line_beside_the_optimal_list(plan) -> None:
    found = plan("--from", LINE, "--policy", "optimal", "--max-graphs", "11")
    assert "What optimal saves, k = 2, 11 graphs" in found.out
    assert "vllm-0.33" in found.out


def test_another_release_of_the_line(plan) -> None:
    [old] = planned(plan("--from", LINE, "--policy", "vllm-0.28", "--format", "json"))
    assert old["policy"] == "vllm-0.28" and old["eager_batch_sizes"] == 1


def test_a_file_alone(plan, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("cuda_graph_config: {batch_sizes: [1, 2], enable_padding: true}\n")
    [one] = planned(plan("--config", str(file), "--format", "json"))
    assert (one["policy"], one["batch_sizes"]) == ("tensorrt-llm-1.3", [1, 2])


SCHEDULE = '"num_speculative_tokens_per_batch_size": [[1, 8, 3], [9, 32, 1]]'
SCHEDULED = (
    """vllm serve M --max-num-seqs 32 -sc '{"method": "mtp", "num_speculative_tokens": 3, """
    f"{SCHEDULE}}}'"
)


def test_a_schedule_is_one_deployment(plan) -> None:
    found = plan("--from", SCHEDULED, "--format", "markdown")
    assert "### Graphs by draft length, vllm-0.33" in found.out
    assert "| k = 3 | 1-8 |" in found.out and "| k = 1 | 9-32 |" in found.out
    assert re.search(r"expected cost of an iteration, drafts included: [\d.,]+ tokens\b", found.out)
    [one] = planned(plan("--from", SCHEDULED, "--format", "json"))
    assert [row["spec_tokens"] for row in one["lengths"]] == [1, 3]


@pytest.mark.parametrize("off", ["--enforce-eager", "-cc.cudagraph_mode=PIECEWISE"])
def test_a_schedule_without_whole_graphs_has_none_at_any_length(plan, off: str) -> None:
    [one] = planned(plan("--from", f"{SCHEDULED} {off}", "--format", "json"))
    assert [(row["graphs"], row["eager"]) for row in one["lengths"]] == [
        (0, [[9, 32]]),
        (0, [[1, 8]]),
    ]
    assert (one["any_phase_eager"], one["graphs_of_all_phases"]) == (32, 0)


def test_a_schedules_graphs_and_memory_are_those_of_all_its_lengths(plan) -> None:
    [one] = planned(plan("--from", SCHEDULED, "--format", "json"))
    fixed = SCHEDULED.replace(", " + SCHEDULE, "")
    [alone] = planned(plan("--from", fixed, "--format", "json"))
    graphs = [row["graphs"] for row in one["lengths"]]
    assert one["graphs_of_all_phases"] == sum(graphs) > alone["graphs_of_all_phases"]
    assert one["graph_memory_bytes"] > alone["graph_memory_bytes"]
    shown = plan("--from", SCHEDULED).out
    assert "this table is that of k = 3 throughout, the graphs by draft length are below" in shown


def test_a_schedule_is_costed_by_a_run_that_measured_its_lengths(plan) -> None:
    line = (
        """vllm serve M --max-num-seqs 8 -sc '{"method": "mtp", "num_speculative_tokens": 3, """
        """"num_speculative_tokens_per_batch_size": [[1, 4, 3], [5, 8, %s]]}'"""
    )
    run = RUN.parent / "qwen3.5-0.8b-k0123"
    found = plan("--from", line % 2, "--costs", str(run), "--format", "markdown")
    assert found.exit_code == 0, found.err
    assert re.search(r"expected cost of an iteration, drafts included: [\d.,]+ ms\b", found.out)
    # The other run measured k = 0 and 3 alone.
    refused = plan("--from", line % 1, "--costs", str(RUN))
    assert refused.exit_code == 2 and "at --spec-tokens 1. Measure it" in refused.err


def test_a_gpu_gives_the_engines_own_defaults(plan) -> None:
    words = ("--gpu", "l40", "--max-num-seqs", "64", "--format", "json")
    [sglang] = planned(plan("--policy", "sglang-0.5.23", *words))
    assert sglang["largest_batch_size"] == 32
    assert any("Raise it with --cuda-graph-max-bs-decode 64" in note for note in sglang["notes"])
    [trt] = planned(plan("--policy", "tensorrt-llm-1.3", *words))
    assert 33 not in trt["batch_sizes"] and any("enable_padding" in note for note in trt["notes"])


def test_without_a_gpu_a_policy_is_as_asked(plan) -> None:
    [one] = planned(plan("--policy", "sglang-0.5.23", "--max-num-seqs", "64", "--format", "json"))
    assert one["largest_batch_size"] == 64 and one["notes"] == []


def test_all_policies_on_a_gpu_with_a_refusal(plan) -> None:
    found = plan("--policy", "all", "--gpu", "h200", "--max-num-seqs", "300")
    assert found.exit_code == 0
    assert "--max-num-seqs 300: must be at most 256" in found.out


def test_interactivity(plan) -> None:
    words = ("--policy", "vllm-0.33", "--max-num-seqs", "33", "--format", "json")
    [plain], [fine] = (planned(plan(*words, *more)) for more in ((), ("--interactivity",)))
    assert len(fine["mixed_tokens"]) > len(plain["mixed_tokens"])


def test_flags_for_vllm_are_the_union_of_the_best_lists(plan) -> None:
    words = ("--policy", "optimal", "--max-graphs", "2", "--max-num-seqs", "8")
    found = plan(*words, "--spec-tokens", "3", "--flags", "vllm")
    # 6 graphs: verify at 2, 4, 6, 8 requests of 4 tokens, draft 1 at 8, drafts 2 and 3 at 8.
    assert found.out == "--compilation-config '{\"cudagraph_capture_sizes\": [8, 16, 24, 32]}'\n"
    assert found.err == ""


@pytest.mark.parametrize("beside", [(), ("--policy", "optimal", "--max-graphs", "11")])
def test_flags_of_a_line_serve_every_phase_when_they_are_pasted_to_it(plan, beside) -> None:
    [before] = planned(plan("--from", LINE, "--format", "json"))
    assert before["any_phase_eager"] == 4
    option = plan("--from", LINE, *beside, "--flags", "vllm")
    assert (option.exit_code, option.err) == (0, "")
    [after] = planned(plan("--from", f"{LINE} {option.out}", "--format", "json"))
    assert (after["any_phase_eager"], after["warnings"]) == (0, [])


@pytest.fixture
def trace(tmp_path: Path) -> str:
    file = tmp_path / "trace.csv"
    rows = [f"{n * 0.05:.2f},100,{20 + n % 30}" for n in range(400)]
    file.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]))
    return str(file)


def test_a_trace_is_replayed_with_measured_costs(plan, trace: str) -> None:
    words = ("--concurrency", trace, "--costs", str(RUN), "--max-num-seqs", "8")
    found = plan(*words, "--policy", "vllm-0.33", "--format", "markdown")
    assert found.exit_code == 0, found.err
    assert f"### Replay of {trace}, k = 3" in found.out
    assert "- vllm-0.33: batch size in each tenth of the time:" in found.out
    [one] = planned(plan(*words, "--policy", "vllm-0.33", "--format", "json"))
    replay = one["admission"]
    assert replay["in_graph_share"] == 1.0 and replay["absorbing"] is None
    assert replay["tpot_p50_ms"] <= replay["tpot_p99_ms"]
    assert one["workload"] == trace
    assert one["graph_memory_source"] == f"measured in {RUN}"


def test_a_trace_gives_optimal_its_workload(plan, trace: str) -> None:
    words = ("--concurrency", trace, "--costs", str(RUN), "--max-num-seqs", "8")
    best, listed = planned(
        plan(*words, "--policy", "vllm-0.33,optimal", "--max-graphs", "3", "--format", "json")
    )[::-1]
    assert best["policy"] == "optimal" and best["graphs"] <= 3
    assert best["admission"] and listed["admission"]


MISTAKES = {
    ("--from", "llama-server -m x"): "--from llama-server -m x: starts no known engine",
    ("--from", ""): "--from: is empty",
    ("--from", LINE, "--spec-tokens", "3"): "--spec-tokens: not beside --from or --config",
    ("--from", LINE, "--capture-unit", "tokens"): "--capture-unit: not beside --from or --config",
    ("--from", LINE, "--tp", "2"): "--tp: not beside --from or --config",
    ("--from", LINE, "--policy", "sglang-0.5.23"): "--policy sglang-0.5.23: --from starts vLLM",
    ("--from", LINE, "--policy", "vllm-0.30,vllm-0.31"): "--from starts one engine. Drop it",
    ("--from", LINE, "--max-graphs", "3"): "of optimal alone",
    ("--config", "nowhere.yaml"): "--config nowhere.yaml: No such file",
    ("--gpu", "gtx"): "--gpu gtx: must be one of t4,",
    ("--gpu", "3"): "--gpu 3: must be one of t4,",
    ("--acceptance-length", "2"): "--acceptance-length: goes with a request trace",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(plan, words: tuple[str, ...]) -> None:
    found = plan(*words)
    assert (found.exit_code, found.out) == (2, "")
    assert found.err.startswith("error: ") and found.err.count("\n") == 1
    assert MISTAKES[words] in found.err


UNQUOTED = [
    ("--from", "vllm", "serve", "M"),
    ("--from=vllm", "serve", "M", "--max-num-seqs", "8"),
    ("--from", "vllm", "serve", "M", "--port", "8000"),
    ("--from", "vllm", "serve", "M", "--max-num-seqs", "1k"),
    ("--from", "vllm serve M -sc {method:", "mtp}"),
]


@pytest.mark.parametrize("words", UNQUOTED)
def test_a_line_without_its_quotes_is_told_of_them(plan, words: tuple[str, ...]) -> None:
    found = plan(*words)
    assert (found.exit_code, found.out, found.err.count("\n")) == (2, "", 1)
    assert '. --from takes the whole line, in quotes or as "$(cat FILE)" (see' in found.err


@pytest.mark.parametrize("words", [("--from", LINE, "--jsn"), ("vllm", "serve"), ("--port", "1")])
def test_other_usage_errors_do_not_speak_of_quotes(plan, words: tuple[str, ...]) -> None:
    found = plan(*words)
    assert found.exit_code == 2 and "quotes" not in found.err


@pytest.mark.parametrize("length", ["0", "nan", "4.5"])
def test_an_acceptance_length_out_of_range_is_refused(plan, trace: str, length: str) -> None:
    words = ("--concurrency", trace, "--costs", str(RUN), "--max-num-seqs", "8")
    found = plan(*words, "--acceptance-length", length)
    assert found.exit_code == 2
    assert f"--acceptance-length {length}: must be 1 to 4 at --spec-tokens 3" in found.err


def test_a_replay_says_that_it_does_not_follow_a_schedule(plan, trace: str) -> None:
    line = SCHEDULED.replace("[9, 32, 1]", "[9, 32, 0]")
    [one] = planned(
        plan("--from", line, "--concurrency", trace, "--costs", str(RUN), "--format", "json")
    )
    assert one["admission"]
    assert "the replay drafts 3 at every batch size, not by the schedule" in one["warnings"]


def test_a_trace_without_times_is_refused(plan, trace: str) -> None:
    found = plan("--concurrency", trace)
    assert found.exit_code == 2
    assert "error: --concurrency: a request trace needs --costs RUN_DIR" in found.err


def test_a_line_is_answered_without_a_heavy_import() -> None:
    """Nothing that takes long is loaded: that is what makes the answer quick."""
    code = (
        "import sys\n"
        f"sys.argv = ['cgbench', 'plan', '--from', {LINE!r}]\n"
        "from cgbench.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'scipy', 'matplotlib', 'yaml'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
