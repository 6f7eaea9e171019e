"""Results of engines' own benchmarks, judged by the same rules, and how many requests it takes."""

import json
from pathlib import Path
from typing import Any

import pytest

import cgbench
from cgbench.errors import CannotError, ExitCode, RunDirectoryError
from cgbench.gate.bench_files import read_bench_file
from cgbench.gate.comparison import Comparison, Rules
from cgbench.gate.sample_sizes import Wanted, sample_sizes
from cgbench.gate.verdicts import Gate, Line
from cgbench.words import Verdict
from tests.support.bench_results import (
    SAMPLED,
    SUMMARIES,
    sglang_one_batch,
    vllm_latency,
    vllm_serve,
    vllm_throughput,
    write,
)
from tests.support.command import cgbench as command

MADE = Path(__file__).parents[2] / "results" / "endpoint"


def compared(tmp_path: Path, base: Any, new: Any, **rules: Any) -> Comparison:
    ending = "jsonl" if isinstance(base, list) and "metadata" in str(base[0]) else "json"
    files = [write(tmp_path / f"{name}.{ending}", c) for name, c in (("a", base), ("b", new))]
    return cgbench.compare(*files, Rules(**rules))


def line_of(found: Comparison, what: str) -> Line:
    return next(line for line in found.lines if line.what == what)


@pytest.mark.parametrize("tool", SAMPLED)
def test_each_tool_is_read_and_another_run_is_the_same(tool: str, tmp_path: Path) -> None:
    make = SAMPLED[tool]
    found = compared(tmp_path, make(0.02, 1), make(0.02, 2), min_effect=0.05)
    assert found.exit_code is ExitCode.OK, found.lines
    assert {line.verdict for line in found.gated} == {Verdict.SAME}
    what = "request latency" if tool == "vllm bench latency" else "TPOT"
    line = line_of(found, what)
    assert line.gated and line.base_blocks and line.base_blocks > 20


@pytest.mark.parametrize("tool", SAMPLED)
def test_each_tool_s_slow_down_is_found_with_its_size(tool: str, tmp_path: Path) -> None:
    make = SAMPLED[tool]
    found = compared(tmp_path, make(0.02, 1), make(0.0214, 2))
    assert found.exit_code is ExitCode.ANSWER_IS_NO
    what = "request latency" if tool == "vllm bench latency" else "TPOT"
    line = line_of(found, what)
    assert line.verdict is Verdict.REGRESSED and line.low and line.high
    assert line.low < 0.07 < line.high
    back = compared(tmp_path, make(0.0214, 2), make(0.02, 1))
    assert line_of(back, what).verdict is Verdict.FASTER


@pytest.mark.parametrize("tool", SUMMARIES)
def test_figures_without_samples_are_shown_and_never_gated(tool: str, tmp_path: Path) -> None:
    make = SUMMARIES[tool]
    found = compared(tmp_path, make(0.02, 1), make(0.04, 2))
    times = [line for line in found.lines if line.what in ("TPOT", "output throughput")]
    assert times and not any(line.gated for line in times)
    told = [line for line in times if line.base is not None]
    assert told and all("no samples in BASE and NEW" in line.reason for line in told)
    assert all(line.verdict is Verdict.NOT_COMPARABLE for line in told)
    # Acceptance has counts in vLLM's. Without any sample nothing was judged, which is not good.
    has_counts = tool == "vllm bench serve"
    assert found.exit_code is (ExitCode.OK if has_counts else ExitCode.CANNOT)


@pytest.mark.parametrize("make", [vllm_throughput, sglang_one_batch])
def test_several_results_of_one_kind_are_repeats(make: Any, tmp_path: Path) -> None:
    """One result is one observation, and what differs between them is in the interval."""
    base, slow = [make(0.02, seed) for seed in range(6)], [make(0.022, 9 + s) for s in range(6)]
    gate = Gate(frozenset({"tpot", "latency", "throughput"}))
    found = compared(tmp_path, base, slow, gate=gate)
    assert found.exit_code is ExitCode.ANSWER_IS_NO
    line = line_of(found, "output throughput")
    assert (line.verdict, line.base_blocks, line.new_blocks) == (Verdict.REGRESSED, 6, 6)
    same = compared(tmp_path, base, [make(0.02, 20 + seed) for seed in range(6)], gate=gate)
    assert same.exit_code is ExitCode.OK


def test_results_of_several_settings_are_judged_apart(tmp_path: Path) -> None:
    def sweep(tpot_s: float, seed: int) -> list[dict[str, Any]]:
        return [vllm_serve(tpot_s if n == 8 else 0.02, seed + n, max_concurrency=n) for n in (1, 8)]

    found = compared(tmp_path, sweep(0.02, 1), sweep(0.025, 5), min_effect=0.05)
    by_place = {line.place: line.verdict for line in found.lines if line.what == "TPOT"}
    assert {place.split("concurrency ")[1].split(",")[0]: v for place, v in by_place.items()} == {
        "1": Verdict.SAME,
        "8": Verdict.REGRESSED,
    }
    partly = compared(tmp_path, sweep(0.02, 1), sweep(0.02, 5)[:1])
    assert partly.exit_code is ExitCode.CANNOT
    assert any(line.reason == "missing in NEW" for line in partly.lines)


def test_acceptance_is_judged_by_its_counts(tmp_path: Path) -> None:
    base = vllm_serve(seed=1)
    found = compared(tmp_path, base, vllm_serve(seed=2, rates=(0.8, 0.6, 0.0)))
    assert line_of(found, "mean acceptance length").verdict is Verdict.REGRESSED
    assert line_of(found, "acceptance rate, draft 1").verdict is Verdict.SAME
    assert line_of(found, "acceptance rate, draft 3").verdict is Verdict.REGRESSED
    few = compared(tmp_path, vllm_serve(seed=1, drafts=20), vllm_serve(seed=2, drafts=21))
    assert line_of(few, "mean acceptance length").verdict is Verdict.INCONCLUSIVE
    bare = vllm_serve(seed=1, rates=()), vllm_serve(seed=2, rates=())
    none = compared(tmp_path, *bare, min_effect=0.05)
    line = line_of(none, "mean acceptance length")
    assert not line.gated and line.reason == "not in BASE and NEW"
    assert none.exit_code is ExitCode.OK


def test_requests_that_fail_now_are_a_regression(tmp_path: Path) -> None:
    broken = vllm_serve(seed=2, failed=3)
    broken["errors"] = ["timeout"] * 3 + [""] * 197
    found = compared(tmp_path, vllm_serve(seed=1), broken)
    line = line_of(found, "failed requests")
    assert (line.verdict, line.base, line.new) == (Verdict.REGRESSED, 0, 3)
    assert line_of(found, "TPOT").new_blocks == 197


@pytest.mark.parametrize(
    ("base", "new", "reason"),
    [
        (vllm_serve(), vllm_latency(), "tool: vllm bench serve in BASE, vllm bench latency in NEW"),
        (vllm_serve(), vllm_serve(model_id="n"), "model: m in BASE, n in NEW"),
        (vllm_serve(), vllm_serve(request_rate="4"), "rate: inf in BASE, 4 in NEW"),
    ],
)
def test_what_cannot_be_compared(base: Any, new: Any, reason: str, tmp_path: Path) -> None:
    found = compared(tmp_path, base, new)
    assert found.exit_code is ExitCode.CANNOT
    assert [line.reason for line in found.gated] == [reason]


def test_a_file_beside_itself_is_the_same(tmp_path: Path) -> None:
    found = compared(tmp_path, vllm_serve(seed=1), vllm_serve(seed=1))
    assert found.exit_code is ExitCode.OK
    assert {line.effect for line in found.gated if line.what != "failed requests"} == {0.0}


DAMAGED = {
    "no json": "{",
    "a number": "3",
    "nothing": "[]",
    "of no tool": '{"answer": 42}',
    "lists of unlike length": json.dumps(vllm_serve() | {"ttfts": [0.1]}),
    "text for times": json.dumps(vllm_latency() | {"latencies": ["fast"]}),
    "no numbers of requests": json.dumps([{"metadata": None, "metrics": None}]),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", vllm_serve())
    bad = tmp_path / "bad.json"
    bad.write_text(DAMAGED[name])
    with pytest.raises(RunDirectoryError, match=r"BASE .*bad\.json"):
        read_bench_file("BASE", bad)
    command("compare", good, bad).refused(2, "NEW", "bad.json")


def test_a_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", vllm_serve())
    command("compare", file, tmp_path).refused(2, "NEW", "is a folder")


@pytest.mark.parametrize("form", ["table", "markdown", "json", "github", "junit", "benchmark-json"])
def test_every_format_of_the_gate_is_written(form: str, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{s}.json", vllm_serve(0.02 * (1 + s / 10), s)) for s in (0, 1)]
    done = command("compare", *files, "--format", form)
    assert done.code == 1, done.stderr
    assert "TPOT" in done.stdout


def test_files_that_vllm_wrote(tmp_path: Path) -> None:
    """Made by the tool itself: vLLM 0.32 on a CPU, with drafts looked up in the text."""
    runs = [read_bench_file("FILE", MADE / f"vllm-serve-{name}.json").runs[0] for name in "ab"]
    for run in runs:
        assert run.tool == "vllm bench serve" and run.failed == 0
        assert {len(values) for values in run.samples.values()} == {24}
        assert len(run.counts) == 3 and run.counts[0][1] > 20
        # The tool's own medians.
        assert sorted(run.samples["ttft"])[12] * 1e3 == pytest.approx(
            run.single["ttft"] * 1e3, rel=0.2
        )
    found = cgbench.compare(MADE / "vllm-serve-a.json", MADE / "vllm-serve-b.json")
    assert {line.what for line in found.gated} >= {"TPOT", "request latency"}
    latency = read_bench_file("FILE", MADE / "vllm-latency.json").runs[0]
    assert len(latency.samples["latency"]) == 10
    throughput = read_bench_file("FILE", MADE / "vllm-throughput.json").runs[0]
    assert throughput.single["throughput"] > 0 and not throughput.samples


def test_as_many_requests_as_power_says_detect_the_change(tmp_path: Path) -> None:
    """Of many pairs of results with so many requests, the stated share is called regressed."""
    file = write(tmp_path / "a.json", vllm_serve(seed=1))
    wanted = Wanted(effect=0.05, power=0.9)
    sizes = {size.metric: size for size in sample_sizes(file, wanted)}
    tpot = sizes["TPOT"]
    assert tpot.requests == 200 and 0.03 < tpot.noise < 0.12
    assert tpot.needed < 200 and tpot.detectable < 0.05
    assert sizes["mean acceptance length"].needed > 0

    def first(record: dict[str, Any]) -> dict[str, Any]:
        kept = ("ttfts", "itls", "output_lens", "start_times", "errors", "input_lens")
        return record | {name: record[name][: tpot.needed] for name in kept}

    called = 0
    for seed in range(30):
        base, new = vllm_serve(0.02, seed), vllm_serve(0.021, 1000 + seed)
        line = line_of(compared(tmp_path, first(base), first(new)), "TPOT")
        called += line.verdict is Verdict.REGRESSED
    assert called >= 22


def test_power_prints_a_table_and_json(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", vllm_serve(seed=1))
    done = command("power", file, "--effect", "3%")
    assert done.code == 0 and "TPOT" in done.stdout and "requests a side" in done.stdout
    found = json.loads(command("power", file, "--json").stdout)
    assert found["effect"] == 0.05 and {each["metric"] for each in found["metrics"]} >= {"TPOT"}
    more = json.loads(command("power", file, "--json", "--effect", "3%").stdout)
    assert more["metrics"][0]["needed"] > found["metrics"][0]["needed"]


REFUSED = [
    ("--effect 2%", 2, "--effect 0.02: must be above --min-effect"),
    ("--power 40%", 2, "--power 0.4: must be above 0.5"),
    ("--effect big", 2, "--effect big"),
]


@pytest.mark.parametrize(("flags", "code", "words"), REFUSED)
def test_power_refuses(flags: str, code: int, words: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", vllm_serve(seed=1))
    command("power", file, *flags.split()).refused(code, words)


def test_power_of_a_file_without_samples(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", vllm_serve(detailed=False))
    command("power", file).refused(3, "holds no samples. Run with --save-detailed")
    with pytest.raises(CannotError):
        sample_sizes(file, Wanted())
